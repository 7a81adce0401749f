"""What people ask of the queue: who is where in it, why, and what would change that."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from orchestrator.control.planning.accounts import Accounts
from orchestrator.control.planning.dependencies import standing
from orchestrator.control.planning.facts import remembered
from orchestrator.control.planning.inputs import Inputs, running, waiting
from orchestrator.control.planning.policy import chosen_policy
from orchestrator.control.records.store import JobStore
from orchestrator.control.scheduler import ClusterView, explain
from orchestrator.job import Job, JobState


@dataclass(frozen=True, kw_only=True)
class QueueRow:
    """A job that waits."""

    job_id: str
    position: int
    """In the order of the scheduler, from 1; 0: it has none yet, or waits for other jobs."""
    tenant: str
    user: str
    priority: int
    num_workers: int
    gpus: int
    """Of all workers."""
    waits_since_s: float
    """Seconds since 1970, this time."""
    reason: str
    start_s: float | None
    """When it starts, as reserved or predicted."""
    reserved: bool
    preemptions: int

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class Explained:
    """How a job stands. What follows `reason` is of a job that the scheduler is to start."""

    job_id: str
    state: str
    reason: str
    position: int = 0
    """From 1; 0: it does not wait for a place, or starts now."""
    holders: tuple[str, ...] = ()
    """The jobs that hold what it needs; of the sets that would do, the cheapest."""
    start_s: float | None = None
    reserved: bool = False
    with_workers: int | None = None
    """The largest legal number of workers with which it would start now."""
    at_priority: int | None = None
    """The lowest priority at which it would start, or have a place cleared for it, now."""
    priority: int = 0
    num_workers: int = 0

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {**asdict(self), "holders": list(self.holders)}


def queue_rows(jobs: Sequence[Job], now: float) -> list[QueueRow]:
    rows = [_row(job) for job in jobs]
    return sorted(rows, key=lambda row: (row.position == 0, row.position, row.waits_since_s, row.job_id))


def explained(store: JobStore, job: Job, cluster: ClusterView, now: float) -> Explained:
    """By the rows as they are now."""
    plain = Explained(
        job_id=job.id, state=job.state.value, reason=job.reason, priority=job.spec.scheduling.priority,
        num_workers=job.spec.resources.num_workers,
    )  # fmt: skip
    if job.state is not JobState.QUEUED:
        return plain
    live = store.all([state for state in JobState if not state.terminal])
    blocked = _blocked(store, live)
    if job.id in blocked:
        return replace(plain, reason=blocked[job.id])
    if not cluster.nodes:
        return replace(plain, reason="no node of the cluster is known yet")
    inputs = _inputs(store, [one for one in live if one.id not in blocked], cluster, now)
    found = explain(job.id, inputs.cluster, inputs.queue, inputs.running, inputs.usage, now, inputs.policy)
    return replace(
        plain, reason=job.reason if cluster.coming else found.reason, position=found.position, holders=found.holders,
        start_s=found.start_s, reserved=found.reserved, with_workers=found.with_workers, at_priority=found.at_priority,
    )  # fmt: skip


def _row(job: Job) -> QueueRow:
    asked, resources = job.spec.scheduling, job.spec.resources
    return QueueRow(
        job_id=job.id, position=job.position, tenant=asked.tenant, user=job.user, priority=asked.priority,
        num_workers=resources.num_workers, gpus=resources.num_workers * int(resources.gpus_per_worker), waits_since_s=job.waits_since_s,
        reason=job.reason, start_s=job.start_s, reserved=job.reserved_s is not None, preemptions=job.service.preemptions,
    )  # fmt: skip


def _blocked(store: JobStore, live: Sequence[Job]) -> dict[str, str]:
    """Why jobs wait that are not the scheduler's yet, by id."""
    depending = [job for job in live if job.state is JobState.QUEUED and job.spec.scheduling.after]
    states = store.states(name for job in depending for name in job.spec.scheduling.after)
    found = {job.id: standing(job, states) for job in depending}
    return {job_id: why for job_id, one in found.items() if (why := one.never or one.waits_for)}


def _inputs(store: JobStore, live: Sequence[Job], cluster: ClusterView, now: float) -> Inputs:
    policy = chosen_policy(store).policy
    runs = tuple(run for job in live if job.state.active for run in running(job, policy, now, remembered(store, job)))
    queue = tuple(waiting(job, policy) for job in live if job.state is JobState.QUEUED)
    usage = Accounts(stay for _, stay in store.stays()).usage(runs, policy.usage_half_life_s)
    return Inputs(cluster=cluster, queue=queue, running=runs, usage=usage, policy=policy)
