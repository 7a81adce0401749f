"""Where a gang fits: all of its workers or none. Pure but for the `Grid`, which a plan works on.

A gang on GPUs that fits one node stays on one, the fullest that has room; a larger one takes whole idle nodes and, for what remains, the
fullest node that has room. A gang on CPUs, or one that may have only so many workers on each node, spreads over the fewest nodes.
Nodes of good standing alone are tried first.
"""

from __future__ import annotations

from collections.abc import Iterator

from orchestrator.control.scheduler.model import ClusterView, Demand, Placement, Standing

Place = tuple[tuple[int, int], ...]
"""(index of a node, number of workers) of each bundle, ascending."""


class Grid:
    """What is free on each node. Sets of nodes are integers: bit i stands for the node with index i in the order of ids."""

    __slots__ = ("buckets", "cluster", "cpus", "good", "gpus", "whole")

    def __init__(self, cluster: ClusterView) -> None:
        """As if nothing ran."""
        nodes = cluster.usable
        self.cluster = cluster
        self.cpus = [node.cpu_units for node in nodes]
        self.gpus = [node.gpus for node in nodes]
        self.good = sum(1 << i for i, node in enumerate(nodes) if node.standing is Standing.GOOD)
        self.buckets = [0] * (max(self.gpus, default=0) + 1)
        self.sort()
        self.whole = tuple(self.buckets)
        """The nodes that have so many GPUs in all, by that number."""

    def copy(self) -> Grid:
        other = Grid.__new__(Grid)
        other.cluster, other.good, other.whole = self.cluster, self.good, self.whole
        other.cpus, other.gpus, other.buckets = self.cpus[:], self.gpus[:], self.buckets[:]
        return other

    def sort(self) -> None:
        """The sets of nodes by what is free, after it was changed other than by `set`."""
        self.buckets = [0] * len(self.buckets)
        for i, count in enumerate(self.gpus):
            self.buckets[max(0, count)] |= 1 << i

    @property
    def everywhere(self) -> int:
        return (1 << len(self.cpus)) - 1

    def with_labels(self, demand: Demand) -> int:
        """The nodes that have all which the gang asks for."""
        if not demand.labels:
            return self.everywhere
        return sum(1 << i for i, node in enumerate(self.cluster.usable) if node.has(demand.labels))

    def set(self, i: int, cpus: int, gpus: int) -> None:
        before, self.cpus[i] = self.gpus[i], cpus
        if gpus != before:
            self.gpus[i] = gpus
            bit = 1 << i
            self.buckets[max(0, before)] &= ~bit
            self.buckets[max(0, gpus)] |= bit

    def take(self, demand: Demand, place: Place) -> None:
        cpus, gpus = demand.cpu_units, demand.gpus
        for i, workers in place:
            self.set(i, self.cpus[i] - workers * cpus, self.gpus[i] - workers * gpus)

    def give(self, demand: Demand, place: Place) -> None:
        cpus, gpus = demand.cpu_units, demand.gpus
        for i, workers in place:
            self.set(i, self.cpus[i] + workers * cpus, self.gpus[i] + workers * gpus)

    def narrow(self, other: Grid, place: Place) -> None:
        """On the nodes of `place`, no more than the other has."""
        for i, _ in place:
            self.set(i, min(self.cpus[i], other.cpus[i]), min(self.gpus[i], other.gpus[i]))

    def renew(self, place: Place, one: Grid, other: Grid) -> None:
        """On the nodes of `place`, what both of the others have."""
        for i, _ in place:
            self.set(i, min(one.cpus[i], other.cpus[i]), min(one.gpus[i], other.gpus[i]))

    def has(self, demand: Demand, place: Place) -> bool:
        """Whether it is free."""
        cpus, gpus = demand.cpu_units, demand.gpus
        return all(self.cpus[i] >= workers * cpus and self.gpus[i] >= workers * gpus for i, workers in place)

    def capacity(self, i: int, demand: Demand) -> int:
        """How many workers of a gang that does not fit this node alone may be on it."""
        count = max(0, self.cpus[i]) // demand.cpu_units
        if demand.gpus:
            count = min(count, max(0, self.gpus[i]) // demand.gpus)
        if demand.max_workers_per_node:
            count = min(count, demand.max_workers_per_node)
        return count - count % demand.group

    def indexed(self, placement: Placement) -> Place:
        """Bundles on nodes that are gone, or go, are left out."""
        index = self.cluster.index
        return tuple((index[node_id], workers) for node_id, workers in placement if node_id in index)

    def named(self, place: Place) -> Placement:
        nodes = self.cluster.usable
        return tuple((nodes[i].id, workers) for i, workers in place)


def place(grid: Grid, demand: Demand, among: int, on_one: bool | None = None) -> Place | None:
    """A place for the whole gang on the nodes of the set `among`, or None.

    `on_one`: whether it stays on one node; None: if it would fit one of `among`.
    """
    if on_one is None:
        on_one = stays_on_one(grid, demand, among)
    find = _on_one if on_one else _on_whole_nodes if takes_whole_nodes(demand) else _spread
    good = among & grid.good
    found = find(grid, demand, good)
    return find(grid, demand, among) if found is None and good != among else found


def stays_on_one(grid: Grid, demand: Demand, among: int) -> bool:
    """Whether the gang is one that would fit a single of these nodes, on GPUs, if nothing ran there."""
    if not takes_whole_nodes(demand):
        return False
    gpus, cpus, nodes = demand.num_workers * demand.gpus, demand.num_workers * demand.cpu_units, grid.cluster.usable
    return any(nodes[i].cpu_units >= cpus for count in range(gpus, len(grid.whole)) for i in bits(grid.whole[count] & among))


def takes_whole_nodes(demand: Demand) -> bool:
    """Where it is too large for one."""
    return demand.gpus > 0 and (not demand.max_workers_per_node or demand.max_workers_per_node >= demand.num_workers)


def _on_one(grid: Grid, demand: Demand, among: int) -> Place | None:
    node = _tightest(grid, demand, demand.num_workers, among)
    return None if node is None else ((node, demand.num_workers),)


def _tightest(grid: Grid, demand: Demand, workers: int, among: int) -> int | None:
    """The fullest node with room for so many workers, of those that stand best."""
    gpus, cpus = workers * demand.gpus, workers * demand.cpu_units
    good = among & grid.good
    if (found := next(_with_room(grid, gpus, cpus, good), None)) is not None or good == among:
        return found
    return min(_with_room(grid, gpus, cpus, among & ~good), key=lambda i: grid.cluster.usable[i].standing, default=None)


def _with_room(grid: Grid, gpus: int, cpus: int, among: int) -> Iterator[int]:
    """The nodes that have room, the fullest first."""
    for count in range(gpus, len(grid.buckets)):
        for i in bits(grid.buckets[count] & among):
            if grid.cpus[i] >= cpus:
                yield i


def _on_whole_nodes(grid: Grid, demand: Demand, among: int) -> Place | None:
    """The largest idle nodes first; the last workers where they fit most tightly."""
    left, chosen = demand.num_workers, []
    for i in _idle(grid, among):
        workers = grid.capacity(i, demand)
        if workers >= left:
            break
        if workers:
            chosen.append((i, workers))
            among &= ~(1 << i)
            left -= workers
    last = _tightest(grid, demand, left, among)
    return None if last is None else tuple(sorted([*chosen, (last, left)]))


def _idle(grid: Grid, among: int) -> Iterator[int]:
    """Nodes with all of their GPUs free: those that stand best first, then the largest."""
    good = among & grid.good
    for tier in (good, among & ~good) if good != among else (among,):
        for count in range(len(grid.buckets) - 1, 0, -1):
            yield from bits(grid.buckets[count] & grid.whole[count] & tier)


def _spread(grid: Grid, demand: Demand, among: int) -> Place | None:
    """Nodes that stand best first, of those the largest; the rest goes where it fits most tightly."""
    left, chosen = demand.num_workers, []
    nodes, spare_gpus = grid.cluster.usable, 0 if demand.gpus else 1  # a job on CPUs keeps away from nodes with GPUs where it can
    room = {i: workers for i in bits(among) if (workers := grid.capacity(i, demand))}
    while left:
        enough = [i for i, workers in room.items() if workers >= left]
        if enough:
            i = min(enough, key=lambda i: (nodes[i].standing, grid.gpus[i] * spare_gpus, room[i], grid.cpus[i], grid.gpus[i], i))
        elif room:
            i = min(room, key=lambda i: (nodes[i].standing, -room[i], grid.gpus[i] * spare_gpus, grid.cpus[i], i))
        else:
            return None
        chosen.append((i, min(left, room.pop(i))))
        left -= chosen[-1][1]
    return tuple(sorted(chosen))


def bits(members: int) -> Iterator[int]:
    """The indices in a set of nodes, ascending."""
    while members:
        low = members & -members
        yield low.bit_length() - 1
        members ^= low
