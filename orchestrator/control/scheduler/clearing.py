"""Who makes room for a gang: the cheapest set of runs without any of which it would not start. Pure."""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Iterable
from dataclasses import replace

from orchestrator.control.scheduler.model import Demand
from orchestrator.control.scheduler.place import Grid, Place, bits, place, stays_on_one, takes_whole_nodes
from orchestrator.control.scheduler.preempt import Held, Victim

_SEEDS = 8


def cheapest(
    grid: Grid, demand: Demand, among: int, victims: list[Victim], on_one: bool | None = None
) -> tuple[list[Victim], Place] | None:
    """(who leaves, where the gang is placed then) or None. `grid`: what is free before anyone leaves; `victims`: those that may.

    `on_one`: as in `place`.
    """
    victims = sorted(victims, key=lambda victim: victim.key)
    if on_one is None:
        on_one = stays_on_one(grid, demand, among)
    if on_one:
        chosen = _on_one(grid, demand, among, victims)
    elif takes_whole_nodes(demand):
        chosen = _on_whole_nodes(grid, demand, among, victims)
    else:
        chosen = victims
    return None if chosen is None else _minimal(grid, demand, among, chosen, on_one)


def _minimal(grid: Grid, demand: Demand, among: int, chosen: list[Victim], on_one: bool) -> tuple[list[Victim], Place] | None:
    """Without those that need not leave, the dearest first."""
    after = grid.copy()
    for victim in chosen:
        after.give(victim.run.job.demand, victim.place)
    found = place(after, demand, among, on_one)
    if found is None:
        return None
    kept = []
    for victim in sorted(chosen, key=lambda victim: victim.key, reverse=True):
        after.take(victim.run.job.demand, victim.place)
        without = place(after, demand, among, on_one)
        if without is None:
            after.give(victim.run.job.demand, victim.place)
            kept.append(victim)
        else:
            found = without
    if not kept:
        return None
    return kept, place(after, demand, among, on_one) or found


def by_node(victims: Iterable[Victim], among: int) -> dict[int, list[Held]]:
    found: dict[int, list[Held]] = {}
    for victim in victims:
        for i, workers in victim.place:
            if among >> i & 1:
                found.setdefault(i, []).append((victim, workers))
    return found


def _on_one(grid: Grid, demand: Demand, among: int, victims: list[Victim]) -> list[Victim] | None:
    held = by_node(victims, among)
    found = Search(grid, demand, held, lambda i: held[i]).best(among)
    return None if found is None else found[1]


class Search:
    """For those of one node that free enough for a gang at the least cost; of equal cost the fewest, then those of the lowest rank.

    Nodes are looked at in the order of a bound on the cost, so that few of them have to be; what changed can be looked at again.
    """

    def __init__(self, grid: Grid, demand: Demand, nodes: Iterable[int], held: Callable[[int], list[Held]]) -> None:
        """`held`: who may leave a node."""
        self._grid, self._held = grid, held
        self._gpus, self._cpus = demand.num_workers * demand.gpus, demand.num_workers * demand.cpu_units
        self._heap: list[tuple[float, int, tuple[int, float], int, int, list[Victim] | None]] = []
        """(cost, number, lowest rank, node, version of the node, who leaves or None while these are bounds)."""
        self._versions: dict[int, int] = {}
        for i in nodes:
            self.look_again(i)

    def look_again(self, i: int) -> None:
        self._versions[i] = version = self._versions.get(i, 0) + 1
        held = self._held(i)
        gpus = units = most = 0
        unit, lowest = math.inf, (0, math.inf)
        for victim, workers in held:
            demand = victim.run.job.demand
            count = workers * demand.gpus
            gpus, units, most = gpus + count, units + workers * demand.cpu_units, max(most, count)
            if count:
                unit = min(unit, victim.cost / count)
                lowest = min(lowest, victim.rank)
        free = max(0, self._grid.gpus[i])
        if held and free + gpus >= self._gpus and self._grid.cpus[i] + units >= self._cpus:
            missing = max(0, self._gpus - free)
            bound = (unit * missing, -(-missing // most)) if missing else (0.0, 0)
            heapq.heappush(self._heap, (*bound, lowest, i, version, None))

    def best(self, among: int) -> tuple[int, list[Victim]] | None:
        """(node, who leaves it)."""
        while self._heap:
            total, number, lowest, i, version, chosen = heapq.heappop(self._heap)
            if version != self._versions[i] or not among >> i & 1:
                continue
            if chosen is not None:
                return i, chosen
            chosen = self._choose(i)
            cost = math.fsum(victim.cost for victim in chosen)
            heapq.heappush(self._heap, (max(cost, total), max(len(chosen), number), lowest, i, version, chosen))
        return None

    def _choose(self, i: int) -> list[Victim]:
        held = sorted(self._held(i), key=lambda row: row[0].key)
        lack = self._gpus - max(0, self._grid.gpus[i])
        found = _cover([(victim, workers * victim.run.job.demand.gpus) for victim, workers in held], lack)
        units = {victim.run.job.id: workers * victim.run.job.demand.cpu_units for victim, workers in held}
        missing = self._cpus - self._grid.cpus[i] - sum(units[victim.run.job.id] for victim in found)
        if missing <= 0:
            return found
        for victim, _ in held:  # CPUs are what it lacks: who else leaves
            if missing > 0 and victim not in found:
                found.append(victim)
                missing -= units[victim.run.job.id]
        gpus = {victim.run.job.id: workers * victim.run.job.demand.gpus for victim, workers in held}
        spare, spare_gpus = -missing, sum(gpus[victim.run.job.id] for victim in found) - lack
        for victim in sorted(found, key=lambda victim: victim.key, reverse=True):  # and who may stay then
            if units[victim.run.job.id] <= spare and gpus[victim.run.job.id] <= spare_gpus:
                found.remove(victim)
                spare, spare_gpus = spare - units[victim.run.job.id], spare_gpus - gpus[victim.run.job.id]
        return found


def _score(victims: list[Victim]) -> tuple[float, int, list[tuple[int, float]], list[str]]:
    """The smaller the better: cost, number, ranks."""
    ordered = sorted(victims, key=lambda victim: victim.key)
    total = math.fsum(victim.cost for victim in ordered)
    return total, len(ordered), [victim.rank for victim in ordered], [victim.run.job.id for victim in ordered]


def _cover(held: list[Held], missing: int) -> list[Victim]:
    """The cheapest of them that free at least `missing` GPUs together (a covering knapsack, in whole GPUs)."""
    best: list[tuple[float, int, tuple[int, ...]] | None] = [(0.0, 0, ()), *([None] * max(0, missing))]
    for number, (victim, count) in enumerate(held):
        for covered in range(missing, 0, -1):
            base = best[max(0, covered - count)]
            if count and base is not None:
                offer = base[0] + victim.cost, base[1] + 1, (*base[2], number)
                present = best[covered]
                if present is None or offer < present:
                    best[covered] = offer
    chosen = best[-1]
    return [held[number][0] for number in chosen[2]] if chosen is not None else []


def _on_whole_nodes(grid: Grid, demand: Demand, among: int, victims: list[Victim]) -> list[Victim]:
    """Those of the nodes that are cleared at the least cost. Nodes are chosen one after the other, which is not always the best where runs
    hold several nodes: so it is tried as well with each of the cheapest of these gone from the beginning."""
    clearing = _Clearing(grid, demand, among, victims)
    wide = sorted((victim for victim in victims if len(victim.place) > 1), key=lambda victim: victim.cost / victim.run.width)
    return min((clearing.node_after_node(seed) for seed in [[], *([victim] for victim in wide[:_SEEDS])]), key=_score)


class _Clearing:
    """Of whole nodes, for one gang."""

    def __init__(self, grid: Grid, demand: Demand, among: int, victims: list[Victim]) -> None:
        self._grid, self._demand, self._among, self._victims = grid, demand, among, victims
        self._held = by_node(victims, among)
        nodes = grid.cluster.usable
        freed = {i: sum(workers * victim.run.job.demand.gpus for victim, workers in row) for i, row in self._held.items()}
        self._clearable = [i for i in bits(among) if nodes[i].gpus and grid.gpus[i] + freed.get(i, 0) == nodes[i].gpus]
        """Nodes on which all that holds GPUs may leave."""
        self._cheapest = sorted(self._offer(i, {}) for i in self._clearable)

    def node_after_node(self, gone: list[Victim]) -> list[Victim]:
        """The last part of the gang may share its node. What a run that holds several nodes costs is counted by its share on each, and once
        in all. Where that finds no place: all."""
        after, among, left = self._grid.copy(), self._among, self._demand.num_workers
        chosen: dict[str, Victim] = {}
        for victim in gone:
            self._let_go(victim, chosen, after)
        untaken = iter(self._cheapest)
        first = next(untaken, None)
        while not stays_on_one(after, part := replace(self._demand, num_workers=left), among):
            while first is not None and not among >> first[-1] & 1:
                first = next(untaken, None)
            nodes = {i for victim in chosen.values() for i, _ in victim.place if among >> i & 1}.intersection(self._clearable)
            offers = [self._offer(i, chosen) for i in nodes] + ([] if first is None else [first])
            if not offers:
                return self._victims
            i = min(offers)[-1]
            for victim, _ in self._held.get(i, ()):
                self._let_go(victim, chosen, after)
            among &= ~(1 << i)
            left -= after.capacity(i, self._demand)
        if place(after, part, among) is None:
            last = _on_one(after, part, among, [victim for victim in self._victims if victim.run.job.id not in chosen])
            return self._victims if last is None else [*chosen.values(), *last]
        return list(chosen.values())

    def _let_go(self, victim: Victim, chosen: dict[str, Victim], after: Grid) -> None:
        if victim.run.job.id not in chosen:
            chosen[victim.run.job.id] = victim
            after.give(victim.run.job.demand, victim.place)

    def _offer(self, i: int, chosen: dict[str, Victim]) -> tuple[float, int, int]:
        """(what clearing the node costs, minus its GPUs, node)."""
        rest = ((victim, workers) for victim, workers in self._held.get(i, ()) if victim.run.job.id not in chosen)
        return math.fsum(victim.cost * workers / victim.run.workers for victim, workers in rest), -self._grid.cluster.usable[i].gpus, i
