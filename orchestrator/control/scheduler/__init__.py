"""Who runs next, and where: `plan`, a pure function of what is known. No clock, no I/O, no Ray.

The order is first in, first out: a job that does not fit yet keeps all behind it waiting, so none is overtaken for ever. Only a
job that could not run if the cluster were empty is passed over until nodes come. What may run on fewer workers: see `elastic`.
"""

from __future__ import annotations

from orchestrator.control.scheduler import elastic
from orchestrator.control.scheduler import reasons as why
from orchestrator.control.scheduler.model import ClusterView, Demand, Plan, Policy, QueuedJob, RunningJob, Start, Usage
from orchestrator.control.scheduler.place import Free, empty, place, take

__all__ = ["ClusterView", "Demand", "Plan", "Policy", "QueuedJob", "RunningJob", "Start", "Usage", "feasible", "plan"]


def plan(
    cluster: ClusterView, queue: tuple[QueuedJob, ...], running: tuple[RunningJob, ...], usage: Usage, now: float, policy: Policy
) -> Plan:
    """What to do at `now`. The same for every order of nodes, queue and running jobs."""
    del usage, policy  # first in, first out needs neither
    usable = tuple(node for node in cluster.nodes if node.alive and not node.draining)
    holders = sorted(running, key=lambda job: job.job_id)
    free = elastic.keep_for_growing(_free(empty(usable), holders), holders)
    growing = list(holders)
    starts: list[Start] = []
    reasons: dict[str, str] = {}
    short: list[str] = []
    head, changes_at = "", None
    for job in sorted(queue, key=lambda job: (job.queued_s, job.job_id)):
        demand = elastic.possible(job, empty(usable))
        if demand is not job.demand:
            short.append(job.job_id)
        if demand is None:
            reasons[job.job_id] = why.infeasible(usable, job.demand)
        elif head:
            reasons[job.job_id] = why.behind(head)
        elif (at := elastic.starts_at(job, demand, now)) > now:
            head, changes_at = job.job_id, at
            reasons[job.job_id] = why.short(usable, job, demand)
        elif (placement := place(free, demand)) is not None:
            starts.append(Start(job_id=job.job_id, placement=placement))
            holders.append(RunningJob(job_id=job.job_id, demand=demand, placement=placement))
            free = take(free, demand, placement)
        else:
            head = job.job_id
            reasons[job.job_id] = why.waiting(free, demand, tuple(holders))
    resizes = () if head else elastic.growths(free, growing)
    return Plan(starts=tuple(starts), reasons=reasons, resizes=resizes, short=tuple(short), next_change_at=changes_at)


def feasible(cluster: ClusterView, demand: Demand) -> str | None:
    """None if the gang fits the empty cluster, else why it can never run there."""
    nodes = tuple(node for node in cluster.nodes if node.alive)
    return None if place(empty(nodes), demand) is not None else why.infeasible(nodes, demand)


def _free(free: tuple[Free, ...], running: list[RunningJob]) -> tuple[Free, ...]:
    for job in running:
        free = take(free, job.demand, job.placement)
    return free
