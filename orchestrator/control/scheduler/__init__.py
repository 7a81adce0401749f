"""Who runs next, and where: `plan`, a pure function of what is known. No clock, no I/O, no Ray.

The order is first in, first out: a job that does not fit yet keeps all behind it waiting, so none is overtaken for ever. Only a
job that could not run if the cluster were empty is passed over until nodes come. What may run on fewer workers: see `elastic`.

Nodes that are suspected to be broken are taken last, and those that failed again and again only by a job that could never run without
them (`control.reputation`).
"""

from __future__ import annotations

from orchestrator.control.scheduler import elastic
from orchestrator.control.scheduler import reasons as why
from orchestrator.control.scheduler.model import ClusterView, Demand, Node, Plan, Policy, QueuedJob, RunningJob, Standing, Start, Usage
from orchestrator.control.scheduler.place import Free, empty, place, take

__all__ = ["ClusterView", "Demand", "Plan", "Policy", "QueuedJob", "RunningJob", "Standing", "Start", "Usage", "feasible", "plan"]


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
        nodes = _allowed(usable, job.demand)
        open_to_it = _on(free, nodes)
        demand = elastic.possible(job, empty(nodes))
        if demand is not job.demand:
            short.append(job.job_id)
        if demand is None:
            reasons[job.job_id] = why.infeasible(usable, job.demand)
        elif head:
            reasons[job.job_id] = why.behind(head)
        elif (at := elastic.starts_at(job, demand, now)) > now:
            head, changes_at = job.job_id, at
            reasons[job.job_id] = why.short(usable, job, demand)
        elif (placement := place(open_to_it, demand)) is not None:
            starts.append(Start(job_id=job.job_id, placement=placement, warning=why.excluded_but_taken(nodes, placement)))
            holders.append(RunningJob(job_id=job.job_id, demand=demand, placement=placement))
            free = take(free, demand, placement)
        else:
            head = job.job_id
            reasons[job.job_id] = why.waiting(open_to_it, demand, tuple(holders)) + why.kept_out(usable, nodes)
    resizes = () if head else elastic.growths(free, growing)
    return Plan(starts=tuple(starts), reasons=reasons, resizes=resizes, short=tuple(short), next_change_at=changes_at)


def feasible(cluster: ClusterView, demand: Demand) -> str | None:
    """None if the gang fits the empty cluster, else why it can never run there."""
    nodes = tuple(node for node in cluster.nodes if node.alive)
    return None if place(empty(nodes), demand) is not None else why.infeasible(nodes, demand)


def _allowed(usable: tuple[Node, ...], demand: Demand) -> tuple[Node, ...]:
    """The nodes that a job may run on: not those that are excluded, unless it could never run on the others."""
    trusted = tuple(node for node in usable if node.standing is not Standing.EXCLUDED)
    return trusted if place(empty(trusted), demand) is not None else usable


def _on(free: tuple[Free, ...], nodes: tuple[Node, ...]) -> tuple[Free, ...]:
    ids = {node.id for node in nodes}
    return tuple(node for node in free if node.node_id in ids)


def _free(free: tuple[Free, ...], running: list[RunningJob]) -> tuple[Free, ...]:
    for job in running:
        free = take(free, job.demand, job.placement)
    return free
