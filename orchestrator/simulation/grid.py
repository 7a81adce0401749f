"""Free GPUs by node, for the baselines: best fit on one node, whole nodes for what is larger than a node."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain, islice

from orchestrator.control.scheduler.model import ClusterView, Demand, Placement, Run


class Grid:
    """GPUs that are free on each node that is up. Of nodes with as many free, the one is first that has had so many for longest."""

    def __init__(self, free: dict[str, int], most: int) -> None:
        """`most`: GPUs of the widest node."""
        self._free = dict(free)
        self._with_free: list[dict[str, None]] = [{} for _ in range(most + 1)]
        for node_id, gpus in free.items():
            self._with_free[gpus][node_id] = None

    def copy(self) -> Grid:
        other = Grid.__new__(Grid)
        other._free, other._with_free = dict(self._free), [dict(nodes) for nodes in self._with_free]
        return other

    def place(self, demand: Demand) -> Placement | None:
        """The fullest nodes that do, the first of equals; None if there are too few."""
        groups, rest = divmod(demand.num_workers, demand.group)
        whole = list(islice(chain.from_iterable(self._with_free[demand.group :]), groups))
        last = self._tightest(rest, whole) if rest else ""
        if len(whole) < groups or last is None:
            return None
        return (*((node_id, demand.group) for node_id in whole), *([(last, rest)] if rest else []))

    def take(self, placement: Placement) -> None:
        for node_id, count in placement:
            self._change(node_id, -count)

    def give_back(self, placement: Placement) -> None:
        for node_id, count in placement:
            self._change(node_id, count)

    def take_back(self, placement: Placement) -> bool:
        """Take it if all of it is free."""
        if any(self._free.get(node_id, 0) < count for node_id, count in placement):
            return False
        self.take(placement)
        return True

    def _change(self, node_id: str, by: int) -> None:
        before = self._free.get(node_id)
        if before is not None:  # the node is up
            del self._with_free[before][node_id]
            self._free[node_id] = before + by
            self._with_free[before + by][node_id] = None

    def _tightest(self, gpus: int, without: list[str]) -> str | None:
        return next((node_id for nodes in self._with_free[gpus:] for node_id in nodes if node_id not in without), None)


class Ledger:
    """The grid as it goes on from plan to plan: how long a node has had so many GPUs free is not to be seen in the runs."""

    def __init__(self) -> None:
        self._cluster: ClusterView | None = None
        self._grid = Grid({}, 0)
        self._held: dict[str, Placement] = {}

    def grid(self, cluster: ClusterView, running: Iterable[Run]) -> Grid:
        """A copy, as it is now. Where nothing runs all begins anew."""
        held = {run.job.id: run.placement for run in running}
        if cluster is not self._cluster or not held:
            alive = {node.id: node.gpus for node in cluster.nodes if node.alive}
            self._cluster, self._grid, self._held = cluster, Grid(alive, max((node.gpus for node in cluster.nodes), default=0)), {}
        left = [placement for job_id, placement in self._held.items() if held.get(job_id) != placement]
        for job_id, placement in held.items():
            if self._held.get(job_id) != placement and not self._grid.take_back(placement):
                self._give_back(left)  # who was preempted for it; all others left after the last starts
                self._grid.take(placement)
        self._give_back(left)
        self._held = held
        return self._grid.copy()

    def _give_back(self, left: list[Placement]) -> None:
        while left:
            self._grid.give_back(left.pop(0))
