"""Schedulers without preemption: in order, past the head, or past the head around its reservation."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from orchestrator.control.scheduler.model import ClusterView, Job, Plan, Policy, Reservation, Run, Start, Usage
from orchestrator.simulation.grid import Grid


@dataclass(frozen=True, kw_only=True)
class ListScheduler:
    """Starts jobs in the order of `key` until one does not fit, the head.

    Without `overtake` all behind it wait (strict). With it each that fits starts (greedy); with `durations` only one that ends, exactly
    foreseen, before the head's reserved start, or leaves the GPUs that are reserved (EASY; Lifka, The ANL/IBM SP scheduling system, 1995).
    """

    key: Callable[[Job], Any]
    overtake: bool = True
    durations: Mapping[str, float] | None = None
    """Run time by job id; given: the head has a reservation."""

    def __call__(
        self, cluster: ClusterView, queue: tuple[Job, ...], running: tuple[Run, ...], usage: Usage, now: float, policy: Policy
    ) -> Plan:
        del usage, policy
        free = Grid.of(cluster, running)
        order = sorted(queue, key=self.key)
        starts: list[Start] = []
        for job in order:
            if not _start(job, free, free, starts):
                break
        behind = order[len(starts) + 1 :]
        if len(starts) == len(order) or not self.overtake:
            return Plan(starts=tuple(starts))
        if self.durations is None:
            _greedy(behind, free, starts)
            return Plan(starts=tuple(starts))
        head = order[len(starts)]
        ends = [(run.started_s + self.durations[run.job.id] - run.job.ran_s, run.placement) for run in running]
        ends += [(now + self.durations[start.job_id], start.placement) for start in starts]
        reservation, later = _reserve(head, free.copy(), sorted(ends))
        _backfill([(job, now + self.durations[job.id] <= reservation.start_s) for job in behind], free, later, starts)
        return Plan(starts=tuple(starts), reservations=(reservation,))


def _start(job: Job, where: Grid, free: Grid, starts: list[Start]) -> bool:
    placement = where.place(job.demand)
    if placement is None:
        return False
    free.take(placement)
    starts.append(Start(job_id=job.id, placement=placement))
    return True


def _greedy(jobs: list[Job], free: Grid, starts: list[Start]) -> None:
    too_large: set[int] = set()
    for job in jobs:
        if job.demand.num_workers not in too_large and not _start(job, free, free, starts):
            too_large.add(job.demand.num_workers)


def _backfill(jobs: list[tuple[Job, bool]], free: Grid, later: Grid, starts: list[Start]) -> None:
    """(job, whether it ends before the reserved start) each; `later`: what is free from then on beside the reservation."""
    too_large: dict[bool, set[int]] = {True: set(), False: set()}
    spare = free.least(later)
    for job, in_time in jobs:
        workers = job.demand.num_workers
        if workers in too_large[in_time]:
            continue
        if not _start(job, free if in_time else spare, free, starts):
            too_large[in_time].add(workers)
        elif in_time:
            spare = free.least(later)
        else:
            later.take(starts[-1].placement)
            spare.take(starts[-1].placement)


def _reserve(head: Job, free: Grid, ends: list[tuple[float, Any]]) -> tuple[Reservation, Grid]:
    """The first moment at which the head fits, and what is free then beside it. Without end: it never does."""
    for index, (end_s, placement) in enumerate(ends):
        free.give_back(placement)
        if index + 1 < len(ends) and ends[index + 1][0] == end_s:
            continue
        place = free.place(head.demand)
        if place is not None:
            free.take(place)
            return Reservation(job_id=head.id, start_s=end_s, placement=place), free
    return Reservation(job_id=head.id, start_s=float("inf"), placement=()), free
