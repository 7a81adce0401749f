"""What a run's events say of what an eviction would cost: its newest checkpoint, what a save takes, what a start takes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from orchestrator.control.planning.inputs import Facts
from orchestrator.control.records.store import JobStore
from orchestrator.events import Event, EventKind
from orchestrator.job import Job

_SAVE = ("stage_s", "upload_s", "commit_s")


def heard(facts: Facts, job: Job, events: Iterable[Event]) -> Facts:
    """With what a supervisor has told since."""
    for event in events:
        if event.kind is EventKind.COMMITTED:
            facts = replace(facts, saved_s=event.time_s, save_s=sum(event.fields.get(name, 0.0) for name in _SAVE))
        elif event.kind is EventKind.STARTED and not facts.restart_s:
            facts = replace(facts, restart_s=max(0.0, event.time_s - (job.started_s or event.time_s)))
    return facts


def remembered(store: JobStore, job: Job) -> Facts:
    """Of a run that another controller has heard so far."""
    since_s = job.started_s or 0.0
    newest = (store.last_event(job.id, kind, since_s) for kind in (EventKind.STARTED, EventKind.COMMITTED))
    return heard(Facts(), job, [event for event in newest if event is not None])
