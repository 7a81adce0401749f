"""Where a gang fits: all of its workers or none, on the fewest nodes, leaving the least behind. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from orchestrator.control.scheduler.model import Demand, Node, Placement, Standing


@dataclass(frozen=True, kw_only=True)
class Free:
    """What is free on one node."""

    node_id: str
    cpu_units: int
    gpus: int
    standing: Standing = Standing.GOOD

    def capacity(self, demand: Demand) -> int:
        """How many workers fit."""
        count = max(0, self.cpu_units) // demand.cpu_units
        if demand.gpus:
            count = min(count, max(0, self.gpus) // demand.gpus)
        return min(count, demand.max_workers_per_node) if demand.max_workers_per_node else count

    def less(self, demand: Demand, workers: int) -> Free:
        return replace(self, cpu_units=self.cpu_units - workers * demand.cpu_units, gpus=self.gpus - workers * demand.gpus)


def empty(nodes: Iterable[Node]) -> tuple[Free, ...]:
    """The nodes as if nothing ran on them, in order of their ids."""
    ordered = sorted(nodes, key=lambda node: node.id)
    return tuple(Free(node_id=node.id, cpu_units=node.cpu_units, gpus=node.gpus, standing=node.standing) for node in ordered)


def place(free: tuple[Free, ...], demand: Demand) -> Placement | None:
    """A placement of the whole gang, or None: on nodes of good standing alone where it fits those."""
    good = tuple(node for node in free if node.standing is Standing.GOOD)
    return _place(good, demand) or (_place(free, demand) if good != free else None)


def take(free: tuple[Free, ...], demand: Demand, placement: Placement) -> tuple[Free, ...]:
    """What is left after `placement`. Bundles on nodes that are gone take nothing."""
    workers = dict(placement)
    return tuple(node.less(demand, workers.get(node.node_id, 0)) for node in free)


def give_back(free: tuple[Free, ...], demand: Demand, placement: Placement) -> tuple[Free, ...]:
    """What would be free without `placement`."""
    workers = dict(placement)
    return tuple(node.less(demand, -workers.get(node.node_id, 0)) for node in free)


def _place(free: tuple[Free, ...], demand: Demand) -> Placement | None:
    """Nodes of the best standing first, of those the largest; the rest goes where it fits most tightly."""
    left, chosen, candidates = demand.num_workers, [], [node for node in free if node.capacity(demand)]
    while left:
        if not candidates:
            return None
        node = _best(candidates, demand, left)
        workers = min(left, node.capacity(demand))
        chosen.append((node.node_id, workers))
        candidates.remove(node)
        left -= workers
    return tuple(sorted(chosen))


def _best(candidates: list[Free], demand: Demand, left: int) -> Free:
    enough = [node for node in candidates if node.capacity(demand) >= left]
    spare_gpus = 0 if demand.gpus else 1  # a job on CPUs keeps away from nodes with GPUs where it can
    if enough:
        return min(
            enough,
            key=lambda node: (node.standing, node.gpus * spare_gpus, node.capacity(demand), node.cpu_units, node.gpus, node.node_id),
        )
    return min(
        candidates, key=lambda node: (node.standing, -node.capacity(demand), node.gpus * spare_gpus, node.cpu_units, node.node_id)
    )  # fmt: skip
