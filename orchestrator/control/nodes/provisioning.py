"""From the plans of the scheduler to the nodes that Ray's autoscaler starts, and back: the only part that asks it for anything.

`Home.node_types` says what the autoscaler may start, in the words of Ray's own configuration. `Provisioner.extended` adds those nodes to
what the scheduler sees, so that a job which fits only a larger cluster waits for it. What a plan asks for (`Plan.asks`) becomes one demand
of whole nodes: such as are not there yet, and such as are, and are kept for jobs that wait for the rest. It is sent when it changes and
taken back when nobody waits; then Ray ends the nodes that are idle. A node with a job on it never is: the job's bundle holds it.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import yaml

from orchestrator.control.scheduler import ClusterView, Plan, Standing
from orchestrator.control.scheduler.model import CPU_UNITS, Labels, Node
from orchestrator.errors import ConfigError
from orchestrator.job import Progress

RESEND_S = 60.0
"""A demand is sent again so often, should Ray's head have forgotten it."""
LOOK_S = 5.0
CLOSE_LIMIT_S = 5.0
PATIENCE_S = 900.0
"""Without a node that comes, or is on its way, before the jobs that wait for some let others have what is there."""
PAUSE_S = 600.0
"""How long, until nodes are asked for again."""

log = logging.getLogger("controller")


@dataclass(frozen=True, kw_only=True)
class NodeType:
    """What the autoscaler may start."""

    name: str
    cpu_units: int
    gpus: int = 0
    max_nodes: int
    priority: int = 0
    labels: Labels = ()
    """Who is tried first, of types that would do."""


@dataclass(frozen=True, kw_only=True)
class Bundle:
    """A whole node that the cluster shall have."""

    cpus: float
    gpus: int
    selector: Mapping[str, str]
    """Ray's label selector."""


@dataclass(frozen=True, kw_only=True)
class Launches:
    """What the autoscaler says of its own doing, by node type."""

    starting: Mapping[str, int] = field(default_factory=dict)
    """Nodes that there are, and that are not part of the cluster yet; an order that nobody has taken is none."""
    failures: tuple[str, ...] = ()
    """Of orders that failed lately, for people."""


class Autoscaler(Protocol):
    """No call waits."""

    def ask(self, bundles: Sequence[Bundle]) -> Future[None]:
        """The cluster is to have all of these at once, each on a node of its own. Replaces what was asked before."""

    def look(self) -> Future[Launches]: ...


def read_node_types(path: Path) -> tuple[tuple[NodeType, ...], int | None]:
    """(types, how many nodes there may be of all together; None: no limit) from a file in the form of Ray's cluster configuration.

    Of that only `available_node_types`, `head_node_type` and `max_workers` are read. Raises ConfigError.
    """
    try:
        values = yaml.safe_load(path.read_text())
    except (OSError, yaml.YAMLError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from error
    types = values.get("available_node_types") if isinstance(values, dict) else None
    if not isinstance(types, dict):
        raise ConfigError(f"{path}: available_node_types={types} is not possible: allowed is a mapping, as in Ray's cluster configuration.")
    limit = values.get("max_workers")
    if limit is not None and not _is_count(limit):
        raise ConfigError(f"{path}: max_workers={limit} is not possible: allowed is a whole number of at least 0.")
    found = [_node_type(path, str(name), kind, limit) for name, kind in types.items() if name != values.get("head_node_type")]
    return tuple(sorted(found, key=lambda kind: (-kind.priority, kind.name))), limit


def _node_type(path: Path, name: str, kind: Any, limit: int | None) -> NodeType:
    where = f"{path}: available_node_types.{name}"
    resources = kind.get("resources") if isinstance(kind, dict) else None
    if not isinstance(resources, dict) or not resources.get("CPU"):
        raise ConfigError(f"{where}.resources={resources} is not possible: allowed is a mapping with CPU, such as {{CPU: 48, GPU: 4}}.")
    cpus, gpus, count, priority = resources["CPU"], resources.get("GPU", 0), kind.get("max_workers", limit), kind.get("priority", 0)
    if not isinstance(cpus, int | float) or isinstance(cpus, bool) or not 0 < cpus < math.inf:
        raise ConfigError(f"{where}.resources.CPU={cpus} is not possible: allowed is a number above 0.")
    for part, value in (("max_workers", count), ("resources.GPU", gpus)):
        if not _is_count(value):
            raise ConfigError(f"{where}.{part}={value} is not possible: allowed is a whole number of at least 0.")
    labels = kind.get("labels") or {}
    if not isinstance(labels, dict) or not all(isinstance(value, str) for value in labels.values()):
        raise ConfigError(f"{where}.labels={labels} is not possible: allowed is a mapping of words to words.")
    if not isinstance(priority, int):
        raise ConfigError(f"{where}.priority={priority} is not possible: allowed is a whole number.")
    return NodeType(
        name=name, cpu_units=round(cpus * CPU_UNITS), gpus=gpus, max_nodes=count, priority=priority, labels=tuple(sorted(labels.items())),
    )  # fmt: skip


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def extended(view: ClusterView, types: Iterable[NodeType], limit: int | None, starting: Mapping[str, int]) -> ClusterView:
    """The view with the nodes that the autoscaler could start beside those that it has. `starting`: how many of them are on their way."""
    names = {kind.name for kind in types}
    left = None if limit is None else limit - sum(node.type in names for node in view.nodes)
    coming: list[Node] = []
    for kind in types:
        number = kind.max_nodes - sum(node.type == kind.name for node in view.nodes)
        number = max(0, number if left is None else min(number, left))
        left = None if left is None else left - number
        coming += [_coming(kind, index, index < starting.get(kind.name, 0)) for index in range(number)]
    return ClusterView(nodes=(*view.nodes, *coming)) if coming else view


def _coming(kind: NodeType, index: int, starting: bool) -> Node:
    """Sorts behind all nodes of Ray's, whose ids are hexadecimal digits, and before those that are not on their way."""
    return Node(
        id=f"~{'+' if starting else '-'}{kind.name}.{index:04d}", host=f"more {kind.name}", cpu_units=kind.cpu_units,
        gpus=kind.gpus, standing=Standing.COMING, type=kind.name, starting=starting, labels=kind.labels,
    )  # fmt: skip


def demand_of(plan: Plan, cluster: ClusterView) -> tuple[Bundle, ...]:
    """The whole nodes of all places that are asked for.

    A node that is not there may be any that is none of today's: not an idle one that jobs are kept from, either.
    """
    wanted = {node_id for ask in plan.asks for node_id, _ in ask.placement}
    known = sorted(node.id for node in cluster.there.nodes)
    new = {"ray.io/node-id": f"!in({','.join(known)})"} if known else {}
    return tuple(
        Bundle(
            cpus=node.cpu_units / CPU_UNITS, gpus=node.gpus,
            selector={**new, **dict(node.labels)} if node.coming else {"ray.io/node-id": node.id},
        )
        for node in cluster.usable
        if node.id in wanted and node.type
    )


def asked_for(plan: Plan, cluster: ClusterView) -> dict[str, bool]:
    """The jobs that nodes are asked for: whether all of these are on their way."""
    coming = cluster.coming
    return {ask.job_id: all(coming[node_id].starting for node_id, _ in ask.placement if node_id in coming) for ask in plan.asks}


def asked_since(progress: Progress, waits_since_s: float, on_way: bool | None, now: float) -> Progress:
    """What stands in the row of a job that waits: since when, this time, it has waited for nodes, and since when for them to join.

    `on_way`: all that are asked for are; None: none are asked for.
    """
    if on_way is None:
        return progress
    if progress.nodes_asked_s < max(waits_since_s, 1e-9):
        progress = replace(progress, nodes_asked_s=now)
    return replace(progress, nodes_launched_s=now) if on_way and progress.nodes_launched_s < progress.nodes_asked_s else progress


class Provisioner:
    """`extended` for each look at the cluster, `heard` for each plan, `step` in each round; none waits."""

    def __init__(self, path: Path, autoscaler: Autoscaler) -> None:
        """`path`: of the node types; where there is no such file, nothing is ever asked for."""
        self._path, self._autoscaler = path, autoscaler
        self._read_s: float | None = None
        self._types: tuple[NodeType, ...] = ()
        self._limit: int | None = None
        self._launches = Launches()
        self._looking: Future[Launches] | None = None
        self._looked_s = float("-inf")
        self._demand: tuple[Bundle, ...] = ()
        self._sent: tuple[Bundle, ...] | None = None
        self._sending: Future[None] | None = None
        self._sent_s = float("-inf")
        self._trouble = ""
        self._moved_s = float("-inf")
        self._seen: tuple[Any, ...] = ()
        self._paused_until_s = float("-inf")

    @property
    def scales(self) -> bool:
        """The cluster has an autoscaler: what stands by on a node would keep it from being idle."""
        return bool(self._types)

    def extended(self, view: ClusterView) -> ClusterView:
        """The view that jobs are judged by."""
        self._read()
        return extended(view, self._types, self._limit, self._launches.starting) if self._types else view

    def sight(self, cluster: ClusterView, now: float) -> ClusterView:
        """The view that is planned on: without what could be started, as long as the autoscaler brings nothing."""
        return cluster if now >= self._paused_until_s else cluster.there

    def heard(self, plan: Plan, cluster: ClusterView, now: float) -> None:
        """What the newest plan asks for."""
        demand = demand_of(plan, cluster)
        signs = (len(demand), len(cluster.there.nodes))
        if not demand or signs != self._seen or any(self._launches.starting.values()):
            self._moved_s, self._seen = now, signs
        if now - self._moved_s > PATIENCE_S:
            why = "; ".join(self._launches.failures) or "it does not say why"
            log.warning("the autoscaler brought no node within %.0f s (%s): asked again in %.0f s", PATIENCE_S, why, PAUSE_S)
            self._paused_until_s, self._moved_s, demand = now + PAUSE_S, now, ()
        self._demand = demand

    def step(self, now: float) -> None:
        if not self._types and not self._sent:
            return
        self._send(now)
        self._look(now)

    def close(self) -> None:
        """Take the demand back, and wait for that: without a controller nobody would use the nodes."""
        if self._sending is not None:
            wait([self._sending], timeout=CLOSE_LIMIT_S)
        if self._sent:
            wait([self._autoscaler.ask(())], timeout=CLOSE_LIMIT_S)

    def _read(self) -> None:
        """The file, when it has changed. One that is not as it should be is told, and the last good one holds."""
        try:
            written_s = self._path.stat().st_mtime
        except OSError:
            self._types, self._limit, self._read_s = (), None, None
            return
        if written_s == self._read_s:
            return
        self._read_s = written_s
        try:
            self._types, self._limit = read_node_types(self._path)
        except ConfigError as error:
            log.error("%s", error)
            return
        log.info("the autoscaler may start %s", [f"{kind.max_nodes} x {kind.name}" for kind in self._types])

    def _send(self, now: float) -> None:
        if self._sending is not None:
            if not self._sending.done():
                return
            sent, self._sending = self._sending, None
            error = sent.exception()
            told = "" if error is None else f"the autoscaler could not be asked: {type(error).__name__}: {error}"
            if told and told != self._trouble:
                log.warning("%s", told)
            self._trouble = told
            if told:
                self._sent, self._sent_s = None, now
        due = RESEND_S if self._sent is not None else LOOK_S
        if self._demand != self._sent or now - self._sent_s >= due:
            if self._demand != self._sent:
                log.info("asks the autoscaler for %d nodes", len(self._demand))
            self._sent, self._sent_s = self._demand, now
            self._sending = self._autoscaler.ask(self._demand)

    def _look(self, now: float) -> None:
        if self._looking is None and now - self._looked_s >= LOOK_S:
            self._looking, self._looked_s = self._autoscaler.look(), now
        if self._looking is None or not self._looking.done():
            return
        looked, self._looking = self._looking, None
        if (error := looked.exception()) is not None:
            log.warning("the autoscaler's state cannot be read: %s: %s", type(error).__name__, error)
            return
        found = looked.result()
        for failure in set(found.failures) - set(self._launches.failures):
            log.warning("the autoscaler: %s", failure)
        self._launches = found


@dataclass
class ScriptedAutoscaler:
    """The double: remembers what it was asked, and says what it is told to."""

    asked: list[tuple[Bundle, ...]] = field(default_factory=list)
    launches: Launches = field(default_factory=Launches)
    answer: Callable[[Any], Future[Any]] = lambda value: _done(value)

    def ask(self, bundles: Sequence[Bundle]) -> Future[None]:
        self.asked.append(tuple(bundles))
        return self.answer(None)

    def look(self) -> Future[Launches]:
        return self.answer(self.launches)


def _done(value: Any) -> Future[Any]:
    future: Future[Any] = Future()
    future.set_result(value)
    return future
