"""Schedulers that preempt: in each round, those that rank first have a place, whoever held it."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from orchestrator.control.scheduler.model import ClusterView, Job, Placement, Plan, Policy, Preempt, Run, Start, Usage
from orchestrator.simulation.grid import Grid

Rank = Callable[[Job, float, float], Any]
"""Of a job, its attained service and its run time so far; who has the lower one is first."""


@dataclass(frozen=True, kw_only=True)
class RoundScheduler:
    """Places jobs in the order of `rank`. Who does not fit into what is free takes from runs of higher rank, the highest first, but no more
    of them than it needs."""

    rank: Rank
    thresholds: tuple[float, ...] = ()
    """Of attained service, between which the order stays the same."""

    def __call__(
        self, cluster: ClusterView, queue: tuple[Job, ...], running: tuple[Run, ...], usage: Usage, now: float, policy: Policy
    ) -> Plan:
        del usage, policy
        free, starts, preempts = Grid.of(cluster, running), [], []
        ranked = sorted(((self._rank_of(run, now), run) for run in running), key=lambda pair: pair[0], reverse=True)
        too_large: set[int] = set()
        for rank, job in sorted(((self.rank(job, job.attained, job.ran_s), job) for job in queue), key=lambda pair: pair[0]):
            if job.demand.num_workers in too_large:
                continue
            placement = free.place(job.demand)
            if placement is None:
                found = _make_room(job, free, [run for other, run in ranked if other > rank])
                if found is None:
                    too_large.add(job.demand.num_workers)
                    continue
                placement, victims = found
                preempts += [Preempt(job_id=run.job.id, for_job=job.id, cost=run.width * run.restart_s) for run in victims]
                ranked = [(other, run) for other, run in ranked if run not in victims]
            free.take(placement)
            starts.append(Start(job_id=job.id, placement=placement))
        return Plan(starts=tuple(starts), preempts=tuple(preempts), next_change_at=self._next_change(running, now))

    def _rank_of(self, run: Run, now: float) -> Any:
        return self.rank(run.job, run.attained(now), run.job.ran_s + now - run.started_s)

    def _next_change(self, running: tuple[Run, ...], now: float) -> float | None:
        crossings = []
        for run in running:
            attained = run.attained(now)
            level = bisect_right(self.thresholds, attained)
            if level < len(self.thresholds):
                crossings.append(now + (self.thresholds[level] - attained) / run.width)
        return min(crossings, default=None)


def _make_room(job: Job, free: Grid, candidates: Iterable[Run]) -> tuple[Placement, list[Run]] | None:
    """Where `job` goes, and who has to leave for it (then gone from `free`); None: it has no place even if all of them left."""
    trial, gone = free.copy(), []
    for run in candidates:
        trial.give_back(run.placement)
        gone.append(run)
        placement = trial.place(job.demand)
        if placement is not None:
            trial.take(placement)
            victims = [run for run in reversed(gone) if not trial.take_back(run.placement)]
            for run in victims:
                free.give_back(run.placement)
            return placement, victims
    return None


def by_level(thresholds: tuple[float, ...]) -> Rank:
    """Least attained service by levels: within a level who came first (Gu et al., Tiresias, NSDI 2019)."""
    return lambda job, attained, ran_s: (bisect_right(thresholds, attained), job.submitted_s, len(job.id), job.id)


def by_remaining(durations: Mapping[str, float], loss_s: float) -> Rank:
    """Shortest remaining run time, which only an oracle knows."""
    return lambda job, attained, ran_s: (durations[job.id] + loss_s * job.preemptions - ran_s, len(job.id), job.id)
