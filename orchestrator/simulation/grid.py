"""Free GPUs by node, for the baselines: best fit on one node, whole nodes for what is larger than a node."""

from __future__ import annotations

from collections.abc import Iterable

from orchestrator.control.scheduler.model import ClusterView, Demand, Placement, Run


class Grid:
    """GPUs that are free on each node that is up."""

    def __init__(self, free: dict[str, int]) -> None:
        self._free = free
        self._count = [0] * (max(free.values(), default=0) + 1)  # of the nodes with so many free
        for gpus in free.values():
            self._count[gpus] += 1

    @classmethod
    def of(cls, cluster: ClusterView, running: Iterable[Run]) -> Grid:
        free = {node.id: node.gpus for node in cluster.nodes if node.alive}
        for run in running:
            for node_id, count in run.placement:
                free[node_id] -= count
        grid = cls(free)
        most = max((node.gpus for node in cluster.nodes), default=0)
        grid._count += [0] * (most + 1 - len(grid._count))
        return grid

    def copy(self) -> Grid:
        other = Grid.__new__(Grid)
        other._free, other._count = dict(self._free), list(self._count)
        return other

    def place(self, demand: Demand) -> Placement | None:
        """The fullest nodes that do, the first of equals; None if there are too few."""
        groups, rest = divmod(demand.num_workers, demand.group)
        if not groups or (groups == 1 and not rest):
            node_id = self._tightest(demand.num_workers)
            return ((node_id, demand.num_workers),) if node_id else None
        if sum(self._count[demand.group :]) < groups + (1 if rest and not any(self._count[rest : demand.group]) else 0):
            return None
        wide = sorted((gpus, node_id) for node_id, gpus in self._free.items() if gpus >= demand.group)[:groups]
        whole = {node_id: demand.group for _, node_id in wide}
        node_id = self._tightest(rest, whole) if rest else None
        return tuple(sorted([*whole.items(), *([(node_id, rest)] if node_id else [])]))

    def take(self, placement: Placement, sign: int = -1) -> None:
        for node_id, count in placement:
            before = self._free.get(node_id)
            if before is None:
                continue  # the node has died
            self._free[node_id] = before + sign * count
            self._count[before] -= 1
            self._count[before + sign * count] += 1

    def take_back(self, placement: Placement) -> bool:
        """Take it if all of it is free."""
        if any(self._free.get(node_id, 0) < count for node_id, count in placement):
            return False
        self.take(placement)
        return True

    def give_back(self, placement: Placement) -> None:
        self.take(placement, 1)

    def least(self, other: Grid) -> Grid:
        """Of each node what is free in both."""
        grid = Grid({node_id: min(gpus, other._free[node_id]) for node_id, gpus in self._free.items()})
        grid._count += [0] * (len(self._count) - len(grid._count))
        return grid

    def _tightest(self, gpus: int, without: Iterable[str] = ()) -> str | None:
        for size in range(gpus, len(self._count)):
            if self._count[size]:
                for node_id, free in self._free.items():
                    if free == size and node_id not in without:
                        return node_id
        return None
