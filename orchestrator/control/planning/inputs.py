"""Rows of the job store as the scheduler sees them. Pure."""

from __future__ import annotations

from dataclasses import dataclass, replace

from orchestrator.control import scheduler
from orchestrator.control.scheduler import ClusterView, Demand, Policy, Run, Usage
from orchestrator.control.scheduler.model import Placement
from orchestrator.job import Job, JobState
from orchestrator.layout import legal_world_sizes


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """All that a plan is made from, but for the time."""

    cluster: ClusterView
    queue: tuple[scheduler.Job, ...] = ()
    running: tuple[Run, ...] = ()
    usage: Usage
    policy: Policy


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What only who follows a run knows of it."""

    saved_s: float | None = None
    save_s: float = 0.0
    restart_s: float = 0.0
    may_grow: bool = False


def waiting(job: Job, policy: Policy, short_since_s: float | None = None) -> scheduler.Job:
    """A job as it waits, or as it is while it runs."""
    asked, had, resources = job.spec.scheduling, job.service, job.spec.resources
    return scheduler.Job(
        id=job.id, demand=Demand.of(job.spec), submitted_s=job.submitted_s,
        queued_s=job.queued_s if policy.mode == "fifo" else job.waits_since_s,  # first in: it keeps its place in the line
        tenant=asked.tenant, user=job.user, priority=asked.priority, limit_s=asked.time_limit_s or None,
        attained=had.attained, ran_s=had.ran_s, waited_s=had.waited_s, preemptions=had.preemptions, preemptible=asked.preemptible,
        reserved_s=job.reserved_s, cleared=job.cleared, resized_s=had.resized_s,
        smaller=legal_world_sizes(job.spec)[:-1] if resources.min_workers else (),
        shrink_after_s=job.spec.recovery.shrink_after_s, short_since_s=short_since_s,
    )  # fmt: skip


def running(job: Job, policy: Policy, now: float, facts: Facts) -> tuple[Run, ...]:
    """A job that holds a place; two runs for one that is about to give up a part of it."""
    order = job.order if job.order is not None and not job.order.left else None
    leaving = job.leaving or bool(job.stop_requested) or (job.state is JobState.DRAINING and order is None)
    whole = Run(
        job=waiting(job, policy), placement=job.placement, started_s=now if job.started_s is None else job.started_s,
        saved_s=facts.saved_s, save_s=facts.save_s, restart_s=facts.restart_s, may_grow=facts.may_grow, leaving=leaving,
        growing=not leaving and order is not None and order.kind == "resize" and not order.for_job,
    )  # fmt: skip
    if leaving or order is None or order.kind != "resize" or not order.for_job:
        return (whole,)
    return shrinking(whole, order.placement)


def shrinking(run: Run, kept: Placement) -> tuple[Run, ...]:
    """What it goes on with, and what becomes free when it has left: as if that were a run of its own that was told to leave."""
    left = dict(kept)
    given = tuple((node, workers - left.get(node, 0)) for node, workers in run.placement if workers > left.get(node, 0))
    part = replace(run.job, id=f"{run.job.id} (a part)", user=f"{run.job.user} (a part)")
    return replace(run, placement=kept), replace(run, job=part, placement=given, leaving=True, may_grow=False)
