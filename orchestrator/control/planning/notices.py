"""What stands in the row of each job that waits: why, its position in the order, and when it starts."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from orchestrator.control.nodes.provisioning import asked_for, asked_since
from orchestrator.control.planning.forecast import MAX_JOBS, predicted_starts
from orchestrator.control.planning.inputs import Inputs
from orchestrator.control.planning.live import LiveJobs
from orchestrator.control.records.store import JobStore
from orchestrator.control.scheduler import Plan
from orchestrator.control.scheduler.model import Placement
from orchestrator.events import Event, EventKind, wording
from orchestrator.job import WAITS_FOR_CONTROLLER, Job

TELL_INTERVAL_S = 1.0
"""Rows that have a reason already are written so often at most."""
EVENT_INTERVAL_S = 60.0
"""A reason that changes again and again becomes an event so often at most."""
FORECAST_INTERVAL_S = 10.0
MAX_ROWS = 250
"""Written in one round; the others in those after it."""
MAX_REASONS = 50
"""Of them, those that are put into words."""

_CLEARED = "is being cleared"
"""The end of a reason in a plan that finds others on their way out already, and does not know for whom."""

log = logging.getLogger("controller")


@dataclass
class _Events:
    """Of one wait of a job."""

    run: int
    newest_s: float = float("-inf")
    words: set[str] = field(default_factory=set)


class Notices:
    def __init__(self, store: JobStore, jobs: LiveJobs) -> None:
        self._store, self._jobs = store, jobs
        self._newest: tuple[Inputs, Plan] | None = None
        self._positions: dict[str, int] = {}
        self._promised: dict[str, float] = {}
        """Starts that the newest plan keeps, by job id."""
        self._now = 0.0
        self._asked: dict[str, bool] = {}
        """Jobs that nodes are asked for: whether all of these are on their way."""
        self._cleared: dict[str, Placement] = {}
        """Places that others have been told to leave, by the job that they are for."""
        self._untold: set[str] = set()
        """Jobs whose reason may be another since it was told."""
        self._starts: Mapping[str, float] = {}
        self._turn: list[str] = []
        """Whose rows are looked at next."""
        self._events: dict[str, _Events] = {}
        self._told_s = self._forecast_s = float("-inf")

    def decided(self, inputs: Inputs, plan: Plan) -> None:
        """What is to be told, as soon as it is time."""
        self._newest = inputs, plan
        self._positions = {job_id: place for place, job_id in enumerate(plan.order, 1)}
        self._asked = asked_for(plan, inputs.cluster)
        self._promised = {kept.job_id: kept.start_s for kept in plan.reservations}
        self._cleared = {kept.job_id: kept.placement for kept in plan.reservations if kept.cleared}
        self._untold = set(plan.order)

    def tell(self, blocked: Mapping[str, str], now: float) -> None:
        """`blocked`: why jobs wait that are not the scheduler's yet."""
        self._now = now
        waiting = self._jobs.waiting()
        due = self._newest is not None and not self._turn and now - self._told_s >= TELL_INTERVAL_S
        if due and (self._untold or now - self._forecast_s >= FORECAST_INTERVAL_S):
            self._told_s, self._turn = now, [job.id for job in waiting]
            self._foresee(len(waiting), now)
        fresh = [job for job in waiting if job.reason == WAITS_FOR_CONTROLLER or job.id in blocked or self._is_promised(job)][:MAX_ROWS]
        told = self._told(fresh, {job.id for job in fresh}, blocked)
        if self._turn and (not due or len(waiting) <= MAX_ROWS):  # a forecast for many is enough for one round
            part, self._turn = set(self._turn[:MAX_ROWS]), self._turn[MAX_ROWS:]
            known = {job.id for job in told}
            told += self._told([job for job in waiting if job.id in part and job.id not in known], self._chosen(part), blocked)
        if told:
            self._store.tell_waiting(told, [event for job in told if (event := self._event(job, now)) is not None])
            for job in told:
                self._jobs.wrote(job)

    def _chosen(self, part: set[str]) -> set[str]:
        """Of those, from the head of the order, some that were not told yet."""
        first = [job_id for job_id in self._positions if job_id in self._untold and job_id in part][:MAX_REASONS]
        self._untold.difference_update(first)
        return set(first)

    def _told(self, jobs: Sequence[Job], explained: set[str], blocked: Mapping[str, str]) -> list[Job]:
        """The rows that are not as they should be, as they should be. `explained`: whose reason is looked at."""
        found = []
        for job in jobs:
            reason = blocked.get(job.id) or (self._reason(job) if job.id in explained else job.reason)
            row: dict[str, Any] = {
                "reason": reason, "position": self._positions.get(job.id, 0), "start_s": self._starts.get(job.id),
                "reserved_s": self._reserved(job), "cleared": self._cleared.get(job.id, ()),
                "progress": asked_since(job.progress, job.waits_since_s, self._asked.get(job.id), self._now),
            }  # fmt: skip
            if any(getattr(job, name) != value for name, value in row.items()):
                found.append(replace(job, **row))
        return found

    def _reason(self, job: Job) -> str:
        if self._newest is None or job.id not in self._positions:
            return job.reason
        reason = self._newest[1].reasons[job.id]
        if not reason.endswith(_CLEARED):
            return reason
        leaving = [one.id for one in self._jobs.all() if one.order is not None and not one.order.left and one.order.for_job == job.id]
        return f"{reason} by {', '.join(leaving[:3])}" if leaving else reason

    def _is_promised(self, job: Job) -> bool:
        """A place that the row does not name yet, or another one than it names: the next plan keeps to it."""
        return job.cleared != self._cleared.get(job.id, ())

    def _reserved(self, job: Job) -> float | None:
        return self._promised.get(job.id) if job.reserved_s is None else job.reserved_s

    def _foresee(self, number: int, now: float) -> None:
        if self._newest is None or (number > MAX_JOBS and now - self._forecast_s < FORECAST_INTERVAL_S):
            return
        self._forecast_s = now
        self._starts = {job_id: float(round(start_s)) for job_id, start_s in predicted_starts(*self._newest, now).items()}

    def _event(self, job: Job, now: float) -> Event | None:
        """Of a reason in words that this job's wait had not before: a queue is at work for days, and its figures change all the time."""
        before, told = self._jobs.get(job.id), self._events.get(job.id)
        if before is not None and before.reason == job.reason:
            return None
        if told is None or told.run != job.run:
            told = self._events[job.id] = _Events(run=job.run)
        words = wording(job.reason)
        if words in told.words or now - told.newest_s < EVENT_INTERVAL_S:
            return None
        told.words.add(words)
        told.newest_s = now
        log.info("%s waits: %s", job.id, job.reason)
        return Event(kind=EventKind.WAITING, job_id=job.id, time_s=now, message=job.reason)

    def forget(self, job_id: str) -> None:
        """It does not wait any more."""
        self._events.pop(job_id, None)
