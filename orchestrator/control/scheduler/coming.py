"""`plan_ahead`: a plan on a cluster that an autoscaler can make larger. Pure.

The nodes that could be started are part of the cluster, and are taken last. A job that is given some of them does not start: they are
asked for, and its place is kept, by the same plan in every round, until all of it is there. So gangs are asked for as a whole, in the order
of the policy, within quotas, and never beyond what the cluster may become; and jobs behind do not take the nodes as they come one by one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

from orchestrator.control.scheduler import reasons as why
from orchestrator.control.scheduler.model import Ask, ClusterView, Job, Node, Placement, Plan, Policy, Run, Usage
from orchestrator.control.scheduler.planner import plan


def plan_ahead(cluster: ClusterView, queue: tuple[Job, ...], running: tuple[Run, ...], usage: Usage, now: float, policy: Policy) -> Plan:
    """As `plan`, with `Plan.asks` for what is not there yet: nothing is started or reserved on it, and nobody is told to leave for it."""
    decided = plan(cluster, queue, running, usage, now, policy)
    if not cluster.coming:
        return decided
    for job in _impatient(decided, cluster, queue, now):
        for count in reversed(job.smaller):
            fewer = replace(job, demand=replace(job.demand, num_workers=count), smaller=tuple(n for n in job.smaller if n < count))
            other = plan(cluster, tuple(fewer if one.id == job.id else one for one in queue), running, usage, now, policy)
            if any(start.job_id == job.id and not _coming(start.placement, cluster) for start in other.starts):
                decided = other
                break
    return _split(decided, cluster, queue, running, now)


def _impatient(decided: Plan, cluster: ClusterView, queue: tuple[Job, ...], now: float) -> list[Job]:
    """Jobs that would wait for nodes, and may start with fewer workers by now."""
    waiting = {start.job_id for start in decided.starts if _coming(start.placement, cluster)}
    return [job for job in queue if job.id in waiting and job.smaller and _shrinks_at(job, now) <= now]


def _shrinks_at(job: Job, now: float) -> float:
    return (now if job.short_since_s is None else job.short_since_s) + job.shrink_after_s


def _split(decided: Plan, cluster: ClusterView, queue: tuple[Job, ...], running: tuple[Run, ...], now: float) -> Plan:
    asked = {start.job_id: start.placement for start in decided.starts if _coming(start.placement, cluster)}
    awaited = tuple(asked)
    left_for = {order.for_job for order in decided.preempts} | {order.for_job for order in decided.resizes}
    cleared = [kept for kept in decided.reservations if kept.job_id in left_for and _coming(kept.placement, cluster)]
    asked |= {kept.job_id: kept.placement for kept in cleared}
    short = {run.job.id for run in running if run.workers < run.job.demand.num_workers}
    asked |= {one.job_id: one.placement for one in decided.resizes if one.job_id in short and _coming(one.placement, cluster)}
    waiting = {job.id: job for job in queue}
    told = {job_id: why.waits_for_nodes(_nodes(placement, cluster)) for job_id, placement in asked.items() if job_id in waiting}
    shrinks = [_shrinks_at(waiting[job_id], now) for job_id in awaited if waiting[job_id].smaller]
    changes = [at for at in (decided.next_change_at, *shrinks) if at is not None and at > now]
    return replace(
        decided,
        starts=tuple(start for start in decided.starts if start.job_id not in asked),
        preempts=tuple(order for order in decided.preempts if order.for_job not in asked),
        resizes=tuple(order for order in decided.resizes if order.for_job not in asked and not _coming(order.placement, cluster)),
        reservations=tuple(kept for kept in decided.reservations if kept.job_id not in asked),
        order=(*awaited, *decided.order), reasons=_Told(told, decided.reasons), short=(*decided.short, *awaited),
        asks=tuple(Ask(job_id=job_id, placement=placement) for job_id, placement in sorted(asked.items())),
        next_change_at=min(changes, default=None),
    )  # fmt: skip


def _coming(placement: Placement, cluster: ClusterView) -> bool:
    return any(node_id in cluster.coming for node_id, _ in placement)


def _nodes(placement: Placement, cluster: ClusterView) -> list[Node]:
    return [cluster.coming[node_id] for node_id, _ in placement if node_id in cluster.coming]


class _Told(Mapping[str, str]):
    """Reasons of some jobs over those of all others, which are made as they are read."""

    def __init__(self, first: Mapping[str, str], others: Mapping[str, str]) -> None:
        self._first, self._others = first, others

    def __getitem__(self, job_id: str) -> str:
        return self._first[job_id] if job_id in self._first else self._others[job_id]

    def __iter__(self) -> Iterator[str]:
        yield from self._first
        yield from (job_id for job_id in self._others if job_id not in self._first)

    def __len__(self) -> int:
        return len(self._others) + sum(job_id not in self._others for job_id in self._first)
