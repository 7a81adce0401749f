"""The gang: a detached placement group with one bundle per node, held over all restarts, and one agent in each bundle."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import ray
from ray.exceptions import GetTimeoutError, RayError
from ray.util.placement_group import PlacementGroup, placement_group, placement_group_table, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from orchestrator.errors import ClusterError
from orchestrator.paths import Home
from orchestrator.runtime.link import Order
from orchestrator.spec import JobSpec
from orchestrator.supervision.agent import Agent
from orchestrator.supervision.context import RunContext

NAMESPACE = "orchestrator"
PLACE_LIMIT_S = 60.0
"""How long an agent may take to start in a bundle that is reserved; a bundle whose node is gone never lets it."""
ANSWER_LIMIT_S = 60.0
INSPECT_LIMIT_S = 5.0
NAME_FREE_LIMIT_S = 20.0
LEAVE_LIMIT_S = 5.0
"""How long an agent may take to remove what its node keeps in memory, when the place is given back without its supervisor."""

log = logging.getLogger("orchestrator.supervisor")

Placement = Sequence[tuple[str, int]]
"""(Ray node id, number of ranks) of each bundle."""


class PlaceLost(ClusterError):
    """A bundle of the job's place lets no agent start: its node is gone."""


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

    def adopt(self, bundle: int, unsaved: set[tuple[int, str]]) -> set[tuple[int, str]]:
        """A node is lost: have its peer store what it holds a copy of. `unsaved`, and what of it will come: (writer, key prefix)."""

    def peer(self, bundle: int) -> int:
        """The bundle that holds the copies of another; itself if it is alone."""

    def close(self) -> None:
        """Ship the logs, end the agents."""


# the place


def bundles(spec: JobSpec, ranks_per_node: Sequence[int], node_ids: Sequence[str]) -> tuple[list[dict[str, float]], list[dict[str, str]]]:
    """(resources, label selector) of each bundle."""
    asked = spec.resources
    resources = [_resources(ranks * asked.cpus_per_worker, ranks * asked.gpus_per_worker) for ranks in ranks_per_node]
    return resources, [{"ray.io/node-id": node_id} for node_id in node_ids]


def reserve(job_id: str, spec: JobSpec, placement: Placement) -> bool:
    """Ask for the job's place, once; True when it is reserved, which is waited for a second at most. Asking again does no harm."""
    found = _find_group(job_id)
    if found is None:
        resources, selectors = bundles(spec, [ranks for _, ranks in placement], [node_id for node_id, _ in placement])
        found = placement_group(
            resources, strategy="PACK", name=group_name(job_id), lifetime="detached", bundle_label_selector=selectors
        )
    return bool(found.wait(timeout_seconds=1))


def release(job_id: str, home: Home, standby: Sequence[str] = ()) -> None:
    """End supervisor and agents and give the place back. No error if nothing is left of them. `standby`: see `Job.standby`."""
    for name in filter(None, (supervisor_name(job_id), *standby[:1])):
        kill_named(name)
        home.supervisor(name).unlink(missing_ok=True)
    agents = [name for name in actor_names() if name.startswith(f"agent:{job_id}:") or name in standby[1:]]
    _let_leave(agents)
    for name in agents:
        kill_named(name)
    group = _find_group(job_id)
    if group is not None:
        remove_placement_group(group)


def supervisor_name(job_id: str) -> str:
    return f"supervisor:{job_id}"


def agent_name(job_id: str, bundle: int) -> str:
    return f"agent:{job_id}:{bundle}"


def group_name(job_id: str) -> str:
    return f"job:{job_id}"


def _resources(cpus: float, gpus: float) -> dict[str, float]:
    return {"CPU": cpus, **({"GPU": gpus} if gpus else {})}


def _find_group(job_id: str) -> PlacementGroup | None:
    """By name over all namespaces: a supervisor's own namespace is that of the driver which created it."""
    for group_id, row in placement_group_table().items():
        if row["name"] == group_name(job_id) and row["state"] != "REMOVED":
            return PlacementGroup(ray.PlacementGroupID(bytes.fromhex(group_id)))
    return None


def _let_leave(agents: Sequence[str]) -> None:
    """Those that can; one whose node is gone, or that does not answer, is not waited for long."""
    handles = [named(name) for name in agents]
    answers = [handle.leave.remote() for handle in handles if handle is not None]
    if answers:
        ray.wait(answers, num_returns=len(answers), timeout=LEAVE_LIMIT_S)


def actor_names() -> list[str]:
    """Of all our actors that live."""
    return [actor["name"] for actor in ray.util.list_named_actors(all_namespaces=True) if actor["namespace"] == NAMESPACE]


def named(name: str) -> Any:
    """The handle of the actor, None if there is none."""
    try:
        return ray.get_actor(name, namespace=NAMESPACE) if name else None
    except ValueError:
        return None


def kill_named(name: str) -> None:
    if (handle := named(name)) is not None:
        ray.kill(handle, no_restart=True)


# the processes in it


def create_agent(name: str, home: Home, strategy: Any, gpus: float = 0.0) -> Any:
    """Does not wait. Raises ValueError if the name is taken."""
    actor = ray.remote(num_cpus=0, max_restarts=0, concurrency_groups={"wait": 1, "copies": 1})(Agent)
    options = actor.options(name=name, namespace=NAMESPACE, lifetime="detached", num_gpus=gpus, scheduling_strategy=strategy)
    return options.remote(str(home.root))


class AgentSlot:
    """The agent of one bundle, started anew when it died. The first one may be a standby."""

    def __init__(
        self, job_id: str, bundle: int, gpus: float, home: Home, entry: str, on_loss: Callable[[int, str], None], standby: str
    ) -> None:  # fmt: skip
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
        self.begun = handle.begin.remote(self.job_id, self.bundle, self._entry, supervisor)
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
        gpus = context.spec.resources.gpus_per_worker
        ready = dict(enumerate(standby))
        self._slots = [
            AgentSlot(context.job_id, bundle, ranks * gpus, context.home, entry, on_loss, ready.get(bundle, ""))
            for bundle, ranks in enumerate(context.ranks_per_bundle)
        ]

    def prepare(self) -> None:
        group = _find_group(self._job_id)
        if group is None:
            raise PlaceLost(f"the place of {self._job_id} is not reserved any more")
        for slot in self._slots:
            slot.prepare(group, self._supervisor)

    def start(self, tasks: Sequence[dict[str, Any]], env: Mapping[str, str], give_up: Callable[[], bool]) -> None:
        self.prepare()
        if not self._wait_placed(give_up):
            return
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
        answers = [slot.begun for slot, _ in self._agents()]
        limit = time.monotonic() + PLACE_LIMIT_S
        missing = answers
        while missing and not give_up():
            if time.monotonic() > limit:
                raise PlaceLost(f"{len(missing)} of {len(answers)} nodes of {self._job_id} do not start an agent any more")
            _, missing = ray.wait(missing, num_returns=len(missing), timeout=0.2)
        if missing:
            return False
        _get(answers)
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
