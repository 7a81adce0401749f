"""The gang: one agent in each bundle of the job's place, and what a supervisor asks of them all."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any, Protocol

import ray
from ray.exceptions import GetTimeoutError, RayError
from ray.util.placement_group import PlacementGroup
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from orchestrator.errors import ClusterError
from orchestrator.paths import Home
from orchestrator.runtime.link import Order
from orchestrator.supervision.agent import Agent
from orchestrator.supervision.context import RunContext
from orchestrator.supervision.place import NAMESPACE, PlaceLost, agent_name, find_group, kill_named, named, nodes_of, why_lost

PLACE_LIMIT_S = 300.0
"""How long an agent may take to start in a bundle that is reserved. One whose node is gone by Ray's own table is not waited for."""
LOOK_INTERVAL_S = 0.5
"""Between two looks at nodes and orders while agents start. Supervisors of many jobs look beside each other, on the head node."""
ANSWER_LIMIT_S = 180.0
INSPECT_LIMIT_S = 5.0
NAME_FREE_LIMIT_S = 20.0

log = logging.getLogger("orchestrator.supervisor")


class Group(Protocol):
    """What a supervisor asks of its worker group."""

    def prepare(self) -> None:
        """Begin to start the agents that are missing. Does not wait."""

    def start(self, tasks: Sequence[dict[str, Any]], env: Mapping[str, str], give_up: Callable[[], bool]) -> None:
        """Fork all ranks. `tasks` lack the rendezvous. Raises PlaceLost, ClusterError; returns early if `give_up()`."""

    def kill_ranks(self) -> None:
        """SIGKILL; returns when no rank is left or the agent of those left is gone too."""

    def order(self, order: Order) -> None: ...

    def inspect(self) -> list[dict[str, Any]]:
        """Of each agent that answers: see `Agent.inspect`, and its `bundle`."""

    def stop_uploads(self) -> None:
        """What is on its way to the store is given up, at once. The ranks must be gone or done. Does not wait."""

    def missing(self) -> set[int]:
        """Bundles that have no agent now."""

    def discard(self, bundle: int) -> None:
        """End the agent of a bundle, which lives and does not act, and with it its ranks. Does not wait."""

    def adopt(self, bundle: int, unsaved: set[tuple[int, str]]) -> set[tuple[int, str]]:
        """A node is lost: have its peer store what it holds a copy of. `unsaved`, and what of it will come: (writer, key prefix)."""

    def peer(self, bundle: int) -> int:
        """The bundle that holds the copies of another; itself if it is alone."""

    def close(self) -> None:
        """Ship the logs, end the agents."""


@cache
def _agent_class() -> Any:
    """Made once: Ray brings the class of each `ray.remote` to the cluster anew."""
    return ray.remote(num_cpus=0, max_restarts=0, concurrency_groups={"wait": 1, "copies": 1})(Agent)


def create_agent(name: str, home: Home, strategy: Any, gpus: float = 0.0) -> Any:
    """Does not wait. Raises ValueError if the name is taken."""
    options = _agent_class().options(name=name, namespace=NAMESPACE, lifetime="detached", num_gpus=gpus, scheduling_strategy=strategy)
    return options.remote(str(home.root))


class AgentSlot:
    """The agent of one bundle, started anew when it died. The first one may be a standby."""

    def __init__(
        self, job_id: str, bundle: int, gpus: float, home: Home, entry: str, on_loss: Callable[[int, str], None], standby: str,
        variables: Mapping[str, str],
    ) -> None:  # fmt: skip
        self._variables = dict(variables)
        self.job_id = job_id
        self.bundle = bundle
        self._gpus = gpus
        self._home = home
        self._entry = entry
        self._on_loss = on_loss
        self._standby = standby
        self._life = 0
        self.handle: Any = None
        self.begun: Any = None
        """The answer to come of its `begin`."""

    def prepare(self, group: PlacementGroup, supervisor: Any) -> None:
        if self.handle is not None:
            return
        kill_named(agent_name(self.job_id, self.bundle))
        self._life += 1
        life, standby, self._standby = self._life, self._standby, ""
        self.handle = handle = named(standby) or self._create(group)
        self.begun = handle.begin.remote(self.job_id, self.bundle, self._entry, supervisor, self._variables)
        # A call that never returns fails when the process dies, which is how Ray tells soonest.
        handle.wait.remote().future().add_done_callback(lambda future: self._lost(life, future))

    def discard(self) -> None:
        if self.handle is not None:
            handle, self.handle = self.handle, None
            self._life += 1
            ray.kill(handle, no_restart=True)

    def _create(self, group: PlacementGroup) -> Any:
        """The name of an agent that was killed a moment ago may still be taken."""
        strategy = PlacementGroupSchedulingStrategy(placement_group=group, placement_group_bundle_index=self.bundle)
        give_up = time.monotonic() + NAME_FREE_LIMIT_S
        while True:
            try:
                return create_agent(agent_name(self.job_id, self.bundle), self._home, strategy, self._gpus)
            except ValueError:
                if time.monotonic() > give_up:
                    raise
                time.sleep(0.01)

    def _lost(self, life: int, future: Any) -> None:
        """On a thread of Ray's."""
        if life == self._life:
            self.handle = None
            self._on_loss(self.bundle, _first_line(future.exception()))


class WorkerGroup:
    """The agents and ranks of one job. `on_loss(bundle, why)` is called on another thread when an agent dies.

    `standby`: names of agents that are up already, by bundle; none or '' for what is to be started.
    """

    def __init__(
        self, context: RunContext, supervisor: Any, on_loss: Callable[[int, str], None], entry: str, standby: Sequence[str] = ()
    ) -> None:  # fmt: skip
        self._job_id = context.job_id
        self._ranks_per_bundle = context.ranks_per_bundle
        self._supervisor = supervisor
        self._peer_copy = context.spec.checkpoint.peer_copy and len(context.ranks_per_bundle) > 1
        self._nodes: list[str] = []
        gpus = context.spec.resources.gpus_per_worker
        ready, variables = dict(enumerate(standby)), context.spec.environment.texts
        self._slots = [
            AgentSlot(context.job_id, bundle, ranks * gpus, context.home, entry, on_loss, ready.get(bundle, ""), variables)
            for bundle, ranks in enumerate(context.ranks_per_bundle)
        ]

    def prepare(self) -> None:
        group = find_group(self._job_id)
        if group is None:
            raise PlaceLost(f"the place of {self._job_id} is not reserved any more")
        self._nodes = self._nodes or nodes_of(group)
        for slot in self._slots:
            slot.prepare(group, self._supervisor)

    def start(self, tasks: Sequence[dict[str, Any]], env: Mapping[str, str], give_up: Callable[[], bool]) -> None:
        self.prepare()
        try:
            if self._wait_placed(give_up):
                self._fork(tasks, env)
        except ClusterError as error:
            lost = why_lost(self._job_id, self._nodes)
            if lost:
                raise PlaceLost(lost) from error
            raise

    def _fork(self, tasks: Sequence[dict[str, Any]], env: Mapping[str, str]) -> None:
        address, port = self._ask([self._slots[0]], "address")[0]
        tasks = [{**task, "master_address": address, "master_port": port} for task in tasks]
        parts, first = [], 0
        for count in self._ranks_per_bundle:
            parts.append(tasks[first : first + count])
            first += count
        peers = [self._slots[self.peer(slot.bundle)].handle if self._peer_copy else None for slot in self._slots]
        self._ask(self._slots, "start_ranks", lambda slot: (tasks[0]["epoch"], parts[slot.bundle], dict(env), peers[slot.bundle]))

    def missing(self) -> set[int]:
        return {slot.bundle for slot in self._slots if slot.handle is None}

    def discard(self, bundle: int) -> None:
        self._slots[bundle].discard()

    def peer(self, bundle: int) -> int:
        return (bundle + 1) % len(self._slots)

    def adopt(self, bundle: int, unsaved: set[tuple[int, str]]) -> set[tuple[int, str]]:
        handle = self._slots[self.peer(bundle)].handle
        if handle is None or not self._peer_copy:
            return set()
        try:
            adopted: set[tuple[int, str]] = ray.get(handle.adopt.remote(bundle, unsaved), timeout=ANSWER_LIMIT_S)
        except RayError as error:
            log.warning("node %d does not store what it has of node %d: %s", self.peer(bundle), bundle, _first_line(error))
            return set()
        return adopted

    def kill_ranks(self) -> None:
        """An agent that cannot kill its ranks is killed itself: the warm process then does it."""
        for slot, answer in [(slot, handle.kill_ranks.remote()) for slot, handle in self._agents()]:
            try:
                ray.get(answer, timeout=ANSWER_LIMIT_S)
            except (RayError, ClusterError) as error:
                log.warning("agent %d did not end its ranks and is ended itself: %s", slot.bundle, _first_line(error))
                slot.discard()

    def order(self, order: Order) -> None:
        for _, handle in self._agents():
            handle.order.remote(int(order))

    def inspect(self) -> list[dict[str, Any]]:
        found = []
        for slot, answer in [(slot, handle.inspect.remote()) for slot, handle in self._agents()]:
            try:
                found.append({"bundle": slot.bundle, **ray.get(answer, timeout=INSPECT_LIMIT_S)})
            except RayError as error:
                log.warning("agent %d does not say how its ranks are: %s", slot.bundle, _first_line(error))
        return found

    def stop_uploads(self) -> None:
        for _, handle in self._agents():
            handle.stop_uploads.remote()

    def close(self) -> None:
        for slot, answer in [(slot, handle.close.remote()) for slot, handle in self._agents()]:
            try:
                ray.get(answer, timeout=ANSWER_LIMIT_S)
            except RayError as error:
                log.warning("agent %d did not ship the rest of its logs: %s", slot.bundle, _first_line(error))
            slot.discard()

    def _agents(self) -> list[tuple[AgentSlot, Any]]:
        """The handles as of now: one may be dropped at any moment, on a thread of Ray's."""
        return [(slot, handle) for slot in self._slots if (handle := slot.handle) is not None]

    def _wait_placed(self, give_up: Callable[[], bool]) -> bool:
        """Until every agent has begun. False if given up. Raises PlaceLost, ClusterError (an agent's own error)."""
        waiting = {slot.begun: slot for slot, _ in self._agents()}
        count, limit = len(waiting), time.monotonic() + PLACE_LIMIT_S
        while waiting:
            ready, _ = ray.wait(list(waiting), num_returns=len(waiting), timeout=LOOK_INTERVAL_S)
            _get(ready)
            for answer in ready:
                del waiting[answer]
            lost = why_lost(self._job_id, self._nodes) if waiting else ""
            if waiting and not lost and time.monotonic() > limit:
                lost = f"{len(waiting)} of {count} nodes do not start an agent within {PLACE_LIMIT_S:.0f} s"
            if waiting and (lost or give_up()):
                for slot in waiting.values():
                    slot.discard()  # whoever asks it would wait for it to start
                if lost:
                    raise PlaceLost(lost)
                return False
        return True

    def _ask(
        self, slots: Sequence[AgentSlot], method: str, arguments: Callable[[AgentSlot], tuple[Any, ...]] = lambda slot: ()
    ) -> list[Any]:  # fmt: skip
        handles = [slot.handle for slot in slots]
        if None in handles:
            raise ClusterError(f"the agent of node {handles.index(None)} died while the ranks were being started")
        return _get([getattr(handle, method).remote(*arguments(slot)) for handle, slot in zip(handles, slots, strict=True)])


def _get(answers: Sequence[Any]) -> list[Any]:
    """Raises ClusterError for whatever Ray or an agent raised."""
    try:
        return list(ray.get(list(answers), timeout=ANSWER_LIMIT_S))
    except GetTimeoutError as error:
        raise ClusterError(f"an agent did not answer within {ANSWER_LIMIT_S:.0f} s") from error
    except RayError as error:
        raise ClusterError(_cause(error)) from error


def _cause(error: BaseException) -> str:
    """Ray wraps what an actor raised; the last line of its text names it."""
    lines = str(error).strip().splitlines()
    return lines[-1] if lines else type(error).__name__


def _first_line(error: BaseException | None) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
