"""Which jobs go on with fewer workers so that others may start, and which with more when nobody waits. Pure.

Only to legal numbers, and a job at most once in an interval. Where other jobs are scheduled first in, first out, a job shrinks only for
want of nodes (decision 0033): then it grows back to its whole gang, and that place is kept from the order until it has started there.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from orchestrator.control.scheduler.model import Demand, Run
from orchestrator.control.scheduler.place import Grid, Place, bits, place

Held = tuple[Run, Place]


@dataclass(frozen=True, slots=True)
class Drop:
    """A run gives up some of its workers on one node."""

    run: Run
    node: int
    workers: int

    @property
    def freed(self) -> Place:
        return ((self.node, self.workers),)


def due_s(run: Run, interval_s: float) -> float:
    """From when a run may be resized."""
    return max(run.started_s, run.job.resized_s or 0.0) + interval_s


def larger_sizes(run: Run, whole_only: bool, most_width: float = math.inf) -> list[int]:
    """Legal numbers of workers above what a run has, with so much more width at most, the largest first."""
    job = run.job
    sizes = (job.demand.num_workers,) if whole_only else (*job.smaller, job.demand.num_workers, *job.larger)
    each = job.demand.gpus or 1
    return sorted((size for size in sizes if 0 < (size - run.workers) * each <= most_width), reverse=True)


def grow(grid: Grid, run: Run, held: Place, sizes: Iterable[int], among: int) -> Place | None:
    """A place for the first of the sizes that fits into what is free and what the run holds; it is taken from `grid`.

    It may lie on other nodes than what the run holds, which is not free before the run has left.
    """
    after = grid.copy()
    after.give(run.job.demand, held)
    for size in sizes:
        demand = replace(run.job.demand, num_workers=size)
        found = place(after, demand, among)
        if found is not None:
            after.take(demand, found)
            grid.narrow(after, found)
            return found
    return None


def shrink(grid: Grid, runs: Sequence[Held], demand: Demand, among: int) -> list[Drop]:
    """Who gives up workers so that a gang that stays on one node fits there: on the node where the fewest do, and the fewest are given up.
    Nobody if it cannot be."""
    gpus, cpus = demand.num_workers * demand.gpus, demand.num_workers * demand.cpu_units
    elastic = sorted((held for held in runs if held[0].job.smaller), key=lambda held: held[0].job.id)
    found: list[tuple[int, int, int, list[Drop]]] = []
    for i in bits(among):
        drops = _drops(elastic, i, gpus - grid.gpus[i])
        freed = sum(drop.workers * drop.run.job.demand.gpus for drop in drops)
        units = sum(drop.workers * drop.run.job.demand.cpu_units for drop in drops)
        if drops and grid.gpus[i] + freed >= gpus and grid.cpus[i] + units >= cpus:
            found.append((len(drops), freed, i, drops))
    return min(found, key=lambda row: row[:3])[3] if found else []


def _drops(elastic: Sequence[Held], node: int, missing: int) -> list[Drop]:
    """One run that gives up enough on the node, as little as can be; else several, the largest parts first."""
    options = [
        Drop(run, node, run.workers - size)
        for run, held in elastic
        for size in run.job.smaller
        if 0 < run.workers - size <= dict(held).get(node, 0)
    ]
    alone = [drop for drop in options if drop.workers * drop.run.job.demand.gpus >= missing]
    if alone:
        return [min(alone, key=lambda drop: (drop.workers * drop.run.job.demand.gpus, drop.workers / drop.run.workers, drop.run.job.id))]
    chosen: dict[str, Drop] = {}
    for drop in sorted(options, key=lambda drop: (-drop.workers * drop.run.job.demand.gpus, drop.run.job.id)):
        if missing > 0 and drop.run.job.id not in chosen:
            chosen[drop.run.job.id] = drop
            missing -= drop.workers * drop.run.job.demand.gpus
    return list(chosen.values())


def without(held: Place, drop: Drop) -> Place:
    """What a run still holds."""
    left = ((i, workers - (drop.workers if i == drop.node else 0)) for i, workers in held)
    return tuple((i, workers) for i, workers in left if workers)
