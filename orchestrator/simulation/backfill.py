"""Schedulers without preemption: in order, past the head, or past the head around its reservation."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from orchestrator.control.scheduler.model import ClusterView, Demand, Job, Placement, Plan, Policy, Reservation, Run, Start, Usage
from orchestrator.simulation.grid import Grid, Ledger


@dataclass(frozen=True, kw_only=True)
class ListScheduler:
    """Starts jobs in the order of `key` until one does not fit, the head.

    Without `overtake` all behind it wait (strict). With it each that fits starts (greedy); with `durations` only one that ends, exactly
    foreseen, by the head's reserved start, or that lets the head have a place then (EASY; Lifka, The ANL/IBM SP scheduling system, 1995).
    Its place is found before that is asked, as it would be without a reservation.
    """

    key: Callable[[Job], Any]
    overtake: bool = True
    durations: Mapping[str, float] | None = None
    """Run time by job id; given: the head has a reservation."""
    asked_always = True
    _ledger: Ledger = field(default_factory=Ledger, init=False, repr=False)

    def __call__(
        self, cluster: ClusterView, queue: tuple[Job, ...], running: tuple[Run, ...], usage: Usage, now: float, policy: Policy
    ) -> Plan:
        del usage, policy
        free = self._ledger.grid(cluster, running)
        order = sorted(queue, key=self.key)
        starts: list[Start] = []
        for job in order:
            if not _start(job, free, starts):
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
        reserved = _Reserved(head.demand, free.copy(), sorted(ends, key=lambda end: end[0]))
        _backfill([(job, now + self.durations[job.id] <= reserved.start_s) for job in behind], free, reserved, starts)
        return Plan(starts=tuple(starts), reservations=(Reservation(job_id=head.id, start_s=reserved.start_s, placement=reserved.place),))


def _start(job: Job, free: Grid, starts: list[Start]) -> bool:
    placement = free.place(job.demand)
    if placement is None:
        return False
    free.take(placement)
    starts.append(Start(job_id=job.id, placement=placement))
    return True


def _greedy(jobs: list[Job], free: Grid, starts: list[Start]) -> None:
    too_large: set[int] = set()
    for job in jobs:
        if job.demand.num_workers not in too_large and not _start(job, free, starts):
            too_large.add(job.demand.num_workers)


class _Reserved:
    """A place for the head at the first moment at which it has one; without nodes that are down maybe never."""

    def __init__(self, demand: Demand, free: Grid, ends: list[tuple[float, Placement]]) -> None:
        self._demand, self._then = demand, free
        self.start_s = float("inf")
        self.place: Placement = ()
        for index, (end_s, placement) in enumerate(ends):
            free.give_back(placement)
            at_once = index + 1 < len(ends) and ends[index + 1][0] == end_s
            found = None if at_once else free.place(demand)
            if found is not None:
                self.start_s, self.place = end_s, found
                free.take(found)
                return

    def allows(self, placement: Placement) -> bool:
        """Whether the head has a place at that moment beside `placement`; if so, that is taken."""
        trial = self._then.copy()
        trial.give_back(self.place)
        if not trial.take_back(placement):
            return False
        found = trial.place(self._demand)
        if found is None:
            return False
        trial.take(found)
        self._then, self.place = trial, found
        return True


def _backfill(jobs: list[tuple[Job, bool]], free: Grid, reserved: _Reserved, starts: list[Start]) -> None:
    """(job, whether it ends by the reserved start) each."""
    too_large: set[int] = set()
    refused: set[int] = set()  # sizes whose place, of what is free now, the head would miss
    for job, in_time in jobs:
        workers = job.demand.num_workers
        if workers in too_large or (not in_time and workers in refused):
            continue
        placement = free.place(job.demand)
        if placement is None:
            too_large.add(workers)
        elif not in_time and not reserved.allows(placement):
            refused.add(workers)
        else:
            free.take(placement)
            starts.append(Start(job_id=job.id, placement=placement))
            refused.clear()
