"""Schedulers that preempt: in each round, those that rank first have a place, whoever held it."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from orchestrator.control.scheduler.model import ClusterView, Job, Plan, Policy, Preempt, Run, Start, Usage
from orchestrator.simulation.grid import Grid, Ledger

Rank = Callable[[Job, float, float], Any]
"""Of a job, its attained service and its run time so far; who has the lower one is first."""
Ranked = list[tuple[Any, Job, Run | None]]


@dataclass(frozen=True, kw_only=True)
class RoundScheduler:
    """Chosen are, in the order of `rank`, all jobs whose GPUs the cluster has in number beside those before them.

    At multiples of `Policy.round_s` each of them that waits is given a place, as if none ran but the chosen. Of the others, again in order,
    who runs stays if its place is whole, else it is preempted; then who waits starts if it fits. Between rounds nobody is preempted; of
    the chosen, who fits into what is free starts at once, but who has come since the last round waits for the next.
    """

    rank: Rank
    asked_always = True
    _ledger: Ledger = field(default_factory=Ledger, init=False, repr=False)

    def __call__(
        self, cluster: ClusterView, queue: tuple[Job, ...], running: tuple[Run, ...], usage: Usage, now: float, policy: Policy
    ) -> Plan:
        del usage
        free = self._ledger.grid(cluster, running)
        if not queue:
            return Plan()
        round_s = now // policy.round_s * policy.round_s
        next_round_s = round_s + policy.round_s
        if any(job.queued_s == now and job.preemptions for job in queue):
            return Plan(next_change_at=next_round_s)  # this moment's round has been
        ranked: Ranked = [(self.rank(job, job.attained, job.ran_s), job, None) for job in queue if job.submitted_s <= round_s]
        ranked += [(self.rank(run.job, run.attained(now), run.job.ran_s + now - run.started_s), run.job, run) for run in running]
        chosen, others = _chosen(sorted(ranked, key=lambda item: item[0]), sum(node.gpus for node in cluster.nodes if node.alive))
        starts: list[Start] = []
        if now > round_s:
            _start_all(chosen, free, starts)
            return Plan(starts=tuple(starts), next_change_at=next_round_s)
        preempts = _round(chosen, others, free, starts)
        return Plan(starts=tuple(starts), preempts=preempts, next_change_at=next_round_s)


def _chosen(ranked: Ranked, gpus: int) -> tuple[Ranked, Ranked]:
    """(those that are, those that are not), each in order."""
    chosen: Ranked = []
    others: Ranked = []
    for item in ranked:
        _, job, run = item
        width = run.width if run else job.demand.width
        if width <= gpus:
            gpus -= width
            chosen.append(item)
        else:
            others.append(item)
    return chosen, others


def _round(chosen: Ranked, others: Ranked, free: Grid, starts: list[Start]) -> tuple[Preempt, ...]:
    for _, _, run in others:
        if run:
            free.give_back(run.placement)
    _start_all(chosen, free, starts)
    victims = [run for _, _, run in others if run and not free.take_back(run.placement)]
    _start_all(others, free, starts)
    return tuple(Preempt(job_id=run.job.id, for_job="", cost=run.width * run.restart_s) for run in victims)


def _start_all(ranked: Ranked, free: Grid, starts: list[Start]) -> None:
    """Of those that wait, whoever fits."""
    for _, job, run in ranked:
        placement = None if run else free.place(job.demand)
        if placement is not None:
            free.take(placement)
            starts.append(Start(job_id=job.id, placement=placement))


def by_level(thresholds: tuple[float, ...]) -> Rank:
    """Least attained service by levels: within a level who came first (Gu et al., Tiresias, NSDI 2019)."""
    return lambda job, attained, ran_s: (bisect_right(thresholds, attained), job.submitted_s, len(job.id), job.id)


def by_remaining(durations: Mapping[str, float], loss_s: float) -> Rank:
    """Shortest remaining run time, which only an oracle knows."""
    return lambda job, attained, ran_s: (durations[job.id] + loss_s * job.preemptions - ran_s, len(job.id), job.id)
