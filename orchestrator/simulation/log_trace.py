"""The jobs of a control plane as a trace: what if they had run under another policy?

Of each job that has ended and ever had a place: its submission, its workers, who it was for, its newest priority and its time limit, and
the time that it would have taken without interruption.
That time is what the goodput ledger counts while the job held its place, without what was lost and what it took to find a failure and to
come back from it, in worker-seconds, by the workers that it asked for. A worker without GPUs counts as one GPU.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from orchestrator.control.scheduler.model import ClusterView
from orchestrator.job import Job
from orchestrator.layout import legal_world_sizes
from orchestrator.simulation.model import Shape, TraceJob
from orchestrator.simulation.trace import from_zero
from orchestrator.supervision.accounting import Bucket
from orchestrator.supervision.ledger import as_of

_INTERRUPTION = (Bucket.LOST, Bucket.DETECTION, Bucket.HANG, Bucket.RECOVERY)


@dataclass(frozen=True, kw_only=True)
class LogTrace:
    jobs: tuple[TraceJob, ...] = ()
    """In the order of their submission, the first at 0 s."""
    live: int = 0
    """Jobs that have not ended: left out."""
    never_ran: int = 0
    """Jobs that ended without a place: left out."""


def log_trace(store: Iterable[Job]) -> LogTrace:
    """Of the jobs of a store, as `JobStore.all` gives them."""
    found = list(store)
    ended = [job for job in found if job.state.terminal]
    ran = [(job, duration_s) for job in ended if (duration_s := _duration_s(job)) > 0]
    jobs = from_zero(_trace_job(job, duration_s) for job, duration_s in ran)
    return LogTrace(jobs=jobs, live=len(found) - len(ended), never_ran=len(ended) - len(ran))


def shapes_of(view: ClusterView) -> tuple[Shape, ...]:
    """The nodes that have GPUs, the largest first."""
    sizes = sorted((node.gpus for node in view.nodes if node.alive and node.gpus), reverse=True)
    return tuple(Shape(nodes=sizes.count(gpus), gpus_per_node=gpus) for gpus in dict.fromkeys(sizes))


def _duration_s(job: Job) -> float:
    """0: it never had a place."""
    ledger = as_of(job, job.ended_s or 0.0)
    if ledger is not None:
        useful = ledger.held_s - sum(ledger.seconds.get(bucket, 0.0) for bucket in _INTERRUPTION)
        return max(useful, 0.0) / job.spec.resources.num_workers
    return max((job.ended_s or 0.0) - job.started_s, 0.0) if job.started_s is not None else 0.0


def _trace_job(job: Job, duration_s: float) -> TraceJob:
    resources, asked = job.spec.resources, job.spec.scheduling
    sizes = legal_world_sizes(job.spec) if resources.min_workers else ()
    return TraceJob(
        id=job.id, submit_s=job.submitted_s, gpus=resources.num_workers, duration_s=duration_s, tenant=job.tenant, user=job.user,
        priority=asked.priority, limit_s=asked.time_limit_s or None, status=job.state.value, sizes=sizes,
    )  # fmt: skip
