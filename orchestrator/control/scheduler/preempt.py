"""Who makes room for a job that comes before: the cheapest set of runs without any of which it would not start. Pure.

A run may be told to leave only past its minimum run time, which doubles with every preemption of its job, and only for a job that comes
before it by more than chance: one that is starved, of a higher priority, of a tenant that holds less than its share while the run's holds
more, or of a lower level of attained service. Expected run times alone are never a cause: two jobs of one level do not evict each other.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

from orchestrator.control.scheduler.model import Demand, Policy, Run
from orchestrator.control.scheduler.place import Grid, Place, bits, place, stays_on_one, takes_whole_nodes

_SEEDS = 8


@dataclass(frozen=True, slots=True)
class Claim:
    """What a job that waits may evict others by. Jobs with equal claims may evict the same runs."""

    starved: bool
    priority: int
    tenant: str
    level: int
    overshoot: float = -math.inf
    """Width that its tenant would hold above its share with the job."""
    rank: int = 0
    """Of its tenant."""


Footing = tuple[float, int]
"""(width that a tenant holds above its share, its rank)."""
ALONE: Footing = (-math.inf, 0)


@dataclass(frozen=True, slots=True)
class Victim:
    """A run that might be told to leave."""

    run: Run
    place: Place
    cost: float
    """Service that would be lost."""
    free_from_s: float
    """Until then it is left alone."""

    @property
    def key(self) -> tuple[float, float, str]:
        """The cheapest first, of those the one with the most service."""
        return self.cost, -self.run.job.attained, self.run.job.id


def protected_until(run: Run, policy: Policy) -> float:
    """Before that, the run is left alone; infinite: always."""
    job = run.job
    if not job.preemptible or run.leaving or run.growing or job.preemptions >= policy.max_preemptions:
        return math.inf
    until = run.started_s + policy.min_run_s * 2 ** min(job.preemptions, policy.max_doublings)
    if job.waited_s > policy.max_total_wait_s:
        until = max(until, run.started_s + job.waited_s - job.ran_s + policy.min_run_s)  # else it would be starved again at once
    return until


def cost(run: Run, now: float) -> float:
    """Service that is lost if the run leaves now: since its last durable checkpoint, and by its save and its next start."""
    saved_s = run.started_s if run.saved_s is None else run.saved_s
    return run.width * (max(0.0, now - saved_s) + run.save_s + run.restart_s)


def evictable_from(claim: Claim, victim: Victim, policy: Policy, footing: Footing) -> float:
    """From when the claim is good against the run; infinite: never. `footing`: of the run's tenant.

    It is good only if the job will still come before the run when that waits, so that nobody leaves in vain, or in a circle.
    """
    job, (overshoot, rank) = victim.run.job, footing
    if claim.starved or claim.priority > job.priority:
        return victim.free_from_s
    if claim.priority < job.priority or (claim.overshoot > 0.0 and (claim.tenant != job.tenant or overshoot <= 0.0)):
        return math.inf
    if claim.tenant != job.tenant:
        if overshoot > 0.0:
            return victim.free_from_s
        if claim.rank >= rank:
            return math.inf
    if claim.level >= len(policy.levels):
        return math.inf
    leaves_level_s = victim.run.started_s + (policy.levels[claim.level] - job.attained) / victim.run.width
    return max(victim.free_from_s, leaves_level_s)


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


def by_node(victims: Iterable[Victim], among: int) -> dict[int, list[tuple[Victim, int]]]:
    """(run, workers there) of each node."""
    found: dict[int, list[tuple[Victim, int]]] = {}
    for victim in victims:
        for i, workers in victim.place:
            if among >> i & 1:
                found.setdefault(i, []).append((victim, workers))
    return found


def _on_one(grid: Grid, demand: Demand, among: int, victims: list[Victim]) -> list[Victim] | None:
    """Those of one node that free enough at the least cost (a covering knapsack for each node, in whole GPUs)."""
    gpus, cpus = demand.num_workers * demand.gpus, demand.num_workers * demand.cpu_units
    candidates = []
    for i, held in by_node(victims, among).items():
        free = max(0, grid.gpus[i])
        freed = [(victim, workers * victim.run.job.demand.gpus, workers * victim.run.job.demand.cpu_units) for victim, workers in held]
        if free + sum(count for _, count, _ in freed) >= gpus and grid.cpus[i] + sum(units for *_, units in freed) >= cpus:
            unit = min((victim.cost / count for victim, count, _ in freed if count), default=0.0)
            candidates.append((unit * (gpus - free), i, gpus - free, freed))
    best: tuple[float, int, float, tuple[str, ...]] | None = None
    chosen: list[Victim] | None = None
    for bound, i, missing, freed in sorted(candidates, key=lambda row: row[:2]):
        if best is not None and bound > best[0]:
            break
        found = _cover([(victim, count) for victim, count, _ in freed], missing)
        if grid.cpus[i] + sum(units for victim, _, units in freed if victim in found) < cpus:
            found = [victim for victim, *_ in freed]
        score = _score(found)
        if best is None or score < best:
            best, chosen = score, found
    return chosen


def _score(victims: list[Victim]) -> tuple[float, int, float, tuple[str, ...]]:
    """The smaller the better: cost, number, and the most service attained."""
    total = math.fsum(victim.cost for victim in victims)
    return total, len(victims), -math.fsum(victim.run.job.attained for victim in victims), tuple(victim.run.job.id for victim in victims)


def _cover(held: list[tuple[Victim, int]], missing: int) -> list[Victim]:
    """The cheapest of them that free at least `missing` GPUs together."""
    if missing <= 0:
        return [victim for victim, count in held if not count]
    best: list[tuple[float, int, tuple[int, ...]] | None] = [(0.0, 0, ()), *([None] * missing)]
    for number, (victim, count) in enumerate(held):
        for covered in range(missing, 0, -1):
            base = best[max(0, covered - count)]
            if count and base is not None:
                offer = base[0] + victim.cost, base[1] + 1, (*base[2], number)
                present = best[covered]
                if present is None or offer < present:
                    best[covered] = offer
    chosen = best[missing]
    return [held[number][0] for number in chosen[2]] if chosen is not None else []


def _on_whole_nodes(grid: Grid, demand: Demand, among: int, victims: list[Victim]) -> list[Victim]:
    """Those of the nodes that are cleared at the least cost. Nodes are chosen one after the other, which is not always the best where runs
    hold several nodes: so it is tried as well with each of the cheapest of these gone from the beginning."""
    wide = [victim for victim in victims if len(victim.place) > 1]
    seeds = [[], *([victim] for victim in sorted(wide, key=lambda victim: victim.cost / victim.run.width)[:_SEEDS])]
    return min((_node_after_node(grid, demand, among, victims, seed) for seed in seeds), key=_score)


def _node_after_node(grid: Grid, demand: Demand, among: int, victims: list[Victim], gone: list[Victim]) -> list[Victim]:
    """The last part of the gang may share its node. What a run that holds several nodes costs is counted by its share on each, and once in
    all. Where that finds no place: all."""
    held, after, left = by_node(victims, among), grid.copy(), demand.num_workers
    chosen = {victim.run.job.id: victim for victim in gone}
    for victim in gone:
        after.give(victim.run.job.demand, victim.place)
    open_to = _clearable(grid, held, among)
    while not stays_on_one(grid, part := replace(demand, num_workers=left), among):
        if not open_to:
            return victims
        i = min(open_to, key=lambda i: (_clearing(held.get(i, ()), chosen), -grid.cluster.usable[i].gpus, i))
        for victim, _ in held.get(i, ()):
            if victim.run.job.id not in chosen:
                chosen[victim.run.job.id] = victim
                after.give(victim.run.job.demand, victim.place)
        open_to.discard(i)
        among &= ~(1 << i)
        left -= after.capacity(i, demand)
    if place(after, part, among) is None:
        others = [victim for victim in victims if victim.run.job.id not in chosen]
        last = _on_one(after, part, among, others)
        return victims if last is None else [*chosen.values(), *last]
    return list(chosen.values())


def _clearable(grid: Grid, held: dict[int, list[tuple[Victim, int]]], among: int) -> set[int]:
    """Nodes on which all that holds GPUs may leave."""
    nodes = grid.cluster.usable
    freed = {i: sum(workers * victim.run.job.demand.gpus for victim, workers in row) for i, row in held.items()}
    return {i for i in bits(among) if nodes[i].gpus and grid.gpus[i] + freed.get(i, 0) == nodes[i].gpus}


def _clearing(held: Iterable[tuple[Victim, int]], chosen: dict[str, Victim]) -> float:
    return math.fsum(victim.cost * workers / victim.run.workers for victim, workers in held if victim.run.job.id not in chosen)

