"""The end of a job's life, or of one run of it, written into the job store."""

from __future__ import annotations

import dataclasses
from typing import Any

from orchestrator.control.store import JobStore
from orchestrator.events import Event, EventKind
from orchestrator.job import EndReason, Job, JobResult, JobState
from orchestrator.supervision.failures import preempted_too_often

_GOES_ON = (EndReason.PREEMPTED, EndReason.RESIZED)
_LAST_STATES = {EndReason.COMPLETED: JobState.SUCCEEDED, **dict.fromkeys((EndReason.CANCELLED, *_GOES_ON), JobState.CANCELLED)}
_NO_PLACE: dict[str, Any] = {"placement": (), "standby": ()}


def requeue(store: JobStore, job: Job, now: float, why: str) -> Job:
    """Back to the queue, at its old place in it; it goes on from its last commit."""
    message = f"{why}; queued again, goes on from its last commit"
    event = Event(kind=EventKind.SUPERVISOR_LOST, job_id=job.id, time_s=now, message=message)
    progress = dataclasses.replace(job.progress, phase="", waits_since_s=now)
    return store.update(job, [event], state=JobState.QUEUED, reason=message, **_NO_PLACE, progress=progress)


def finish(store: JobStore, job: Job, end: JobResult, now: float) -> Job:
    """Write the end of a job. One that was preempted, or left to be resized, is queued for its next run."""
    known = store.events(job.id)[-1:]
    told = bool(known) and known[0][1].kind is EventKind.ENDED
    events = [] if told else [Event(kind=EventKind.ENDED, job_id=job.id, time_s=now, message=end.message or end.end_reason.label)]
    progress = dataclasses.replace(job.progress, phase="")
    state, reason = _LAST_STATES.get(end.end_reason, JobState.FAILED), end.message or end.end_reason.label
    if end.end_reason in _GOES_ON and not job.stop_requested:
        preempted = end.end_reason is EndReason.PREEMPTED
        often = preempted_too_often(job.spec.recovery, progress.preemptions) if preempted else ""
        if not often:
            progress = dataclasses.replace(progress, waits_since_s=now)
            return store.update(job, events, state=JobState.QUEUED, run=job.run + 1, reason=reason, **_NO_PLACE, progress=progress)
        state, reason = JobState.FAILED, f"{often}; the last time: {reason}"
    return store.update(job, events, state=state, ended_s=now, reason=reason, result=end, **_NO_PLACE, progress=progress)


def cancelled(job: Job) -> JobResult:
    return ended(job, EndReason.CANCELLED, EndReason.CANCELLED.label)


def ended(job: Job, reason: EndReason, message: str) -> JobResult:
    committed = job.progress.committed_step
    return JobResult(
        end_reason=reason, message=message, step=job.progress.step, committed_step=committed, resumable=committed is not None
    )
