"""The end of a job's life, or of one run of it, written into the job store."""

from __future__ import annotations

import dataclasses
from typing import Any

from orchestrator.control.planning.accounts import Stay
from orchestrator.control.planning.receipt import receipt
from orchestrator.control.records.store import JobStore
from orchestrator.control.scheduler import Demand
from orchestrator.events import Event, EventKind
from orchestrator.job import EndReason, Job, JobResult, JobState
from orchestrator.service import Order, Service
from orchestrator.supervision.failures import preempted_too_often

_GOES_ON = (EndReason.PREEMPTED, EndReason.RESIZED)
_STOPPED = (EndReason.CANCELLED, EndReason.TIME_LIMIT, EndReason.DEPENDENCY, *_GOES_ON)
_LAST_STATES = {EndReason.COMPLETED: JobState.SUCCEEDED, **dict.fromkeys(_STOPPED, JobState.CANCELLED)}
_NO_PLACE: dict[str, Any] = {"placement": (), "standby": ()}


def requeue(store: JobStore, job: Job, now: float, why: str) -> Job:
    """Back to the queue, at its old place in it; it goes on from its last commit."""
    message = f"{why}; queued again, goes on from its last commit"
    event = Event(kind=EventKind.SUPERVISOR_LOST, job_id=job.id, time_s=now, message=message)
    progress = dataclasses.replace(job.progress, phase="", waits_since_s=now)
    changes = {**_NO_PLACE, "progress": progress, "service": _had(job, now), "order": _carried(job)}
    return store.update(job, [event], _stay(job, now), state=JobState.QUEUED, reason=message, **changes)


def finish(store: JobStore, job: Job, end: JobResult, now: float) -> Job:
    """Write the end of a job. One that was preempted, or left to be resized, is queued for its next run."""
    events = []
    if not _is_told(store, job):
        events.append(Event(kind=EventKind.ENDED, job_id=job.id, time_s=now, message=end.message or end.end_reason.label))
    progress = dataclasses.replace(job.progress, phase="")
    if job.stop_requested == "limit" and end.end_reason in _STOPPED:
        message = over_limit(job) + (f"; {end.message}" if end.message else "")
        end = dataclasses.replace(end, end_reason=EndReason.TIME_LIMIT, message=message)
    state, reason = _LAST_STATES.get(end.end_reason, JobState.FAILED), end.message or end.end_reason.label
    if end.end_reason in _GOES_ON and not job.stop_requested:
        preempted = end.end_reason is EndReason.PREEMPTED
        often = preempted_too_often(job.spec.recovery, progress.preemptions) if preempted else ""
        if not often:
            changes: dict[str, Any] = {**_NO_PLACE, "progress": dataclasses.replace(progress, waits_since_s=now)}
            changes |= {"service": _had(job, now, end.end_reason), "order": _carried(job, end.end_reason)}
            return store.update(job, events, _stay(job, now), state=JobState.QUEUED, run=job.run + 1, reason=reason, **changes)
        state, reason = JobState.FAILED, f"{often}; the last time: {reason}"
    stay = _stay(job, now, succeeded=state is JobState.SUCCEEDED)
    last = dataclasses.replace(job, state=state, ended_s=now, progress=progress)
    if (account := receipt(last, now)) is not None:
        events.append(account)
    return store.update(
        job, events, stay, state=state, ended_s=now, reason=reason, result=end, progress=progress, service=_had(job, now), order=None,
        position=0, start_s=None, reserved_s=None, cleared=(), **_NO_PLACE,
    )  # fmt: skip


def source(job: Job, supervisor: str = "") -> str:
    """Under which the job store keeps what that supervisor of the job's run tells, or the beginning that all of the run have."""
    return f"{job.run}:{supervisor}"


def _is_told(store: JobStore, job: Job) -> bool:
    """Whether a supervisor of this run has told of the end: it may take a while to leave after that, and other things may happen."""
    return bool(job.placement) and store.last_event(job.id, EventKind.ENDED, source=source(job)) is not None


def stopped(job: Job) -> JobResult:
    """The end of a job that was asked to stop and does not answer."""
    if job.stop_requested == "limit":
        return ended(job, EndReason.TIME_LIMIT, over_limit(job))
    return ended(job, EndReason.CANCELLED, EndReason.CANCELLED.label)


def over_limit(job: Job) -> str:
    return f"its time limit is over (scheduling.time_limit_s={job.spec.scheduling.time_limit_s:g})"


def ended(job: Job, reason: EndReason, message: str) -> JobResult:
    committed = job.progress.committed_step
    return JobResult(end_reason=reason, message=message, step=job.progress.step, committed_step=committed, resumable=committed is not None)


def _ran_s(job: Job, now: float) -> float:
    """In the stay that ends now."""
    return max(0.0, now - job.started_s) if job.placement and job.started_s is not None else 0.0


def _had(job: Job, now: float, reason: EndReason | None = None) -> Service:
    """What it has had when it leaves its place now. `reason`: of leaving for another run."""
    had, ran_s = job.service, _ran_s(job, now)
    ordered = job.leaving and reason is EndReason.PREEMPTED
    return dataclasses.replace(
        had, attained=had.attained + ran_s * _width(job), ran_s=had.ran_s + ran_s, preemptions=had.preemptions + ordered
    )  # fmt: skip


def _stay(job: Job, now: float, succeeded: bool = False) -> Stay | None:
    if not job.placement or job.started_s is None:
        return None
    return Stay(
        job_id=job.id, tenant=job.spec.scheduling.tenant, width=_width(job), asked_width=Demand.of(job.spec).width,
        started_s=job.started_s, ended_s=now, ran_s=_had(job, now).ran_s, succeeded=succeeded,
    )  # fmt: skip


def _width(job: Job) -> int:
    return job.num_placed * (int(job.spec.resources.gpus_per_worker) or 1)


def _carried(job: Job, reason: EndReason | None = None) -> Order | None:
    """The order that it was given, once it has left. One to be resized is void if it has left for another reason."""
    order = job.order
    if order is None or order.left:
        return order
    return None if order.kind == "resize" and reason is not EndReason.RESIZED else dataclasses.replace(order, left=True)
