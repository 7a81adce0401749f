"""One active job, from the place it was given to its end: what to ask its worker group next, and what the answer means.

    FIND   the controller has just started: is there a supervisor?     yes -> WATCH, no -> RESULT
    START  reserve the place, start the supervisor                     ready -> WATCH, error -> RELEASE
    WATCH  ask for its status, pass orders to stop on                  ended or gone -> RESULT
    RESULT read how it ended                                           -> RELEASE, then the job's last state, or QUEUED if it
                                                                       did not end and its worker group is lost; -> START
                                                                       if the controller before this one was starting it
    RELEASE give the place back, then write the job's new state

One question is in flight at a time; `advance` never waits.
"""

from __future__ import annotations

import enum
import logging
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from typing import Any
from zlib import crc32

from orchestrator.control.closing import ended, finish, requeue, source, stopped
from orchestrator.control.nodes.groups import GroupStatus, SupervisorGone, WorkerGroups
from orchestrator.control.planning.facts import heard, remembered
from orchestrator.control.planning.inputs import Facts
from orchestrator.control.planning.orders import Orders
from orchestrator.control.planning.receipt import receipt
from orchestrator.control.records.store import JobStore
from orchestrator.errors import StorageUnavailable
from orchestrator.events import Event
from orchestrator.job import TRANSITIONS, EndReason, Job, JobResult, JobState

START_LIMIT_S = 300.0
"""How long Ray may take to reserve a place that the plan found free, and to start the supervisor."""
STOP_NOW_LIMIT_S = 20.0
"""How long a supervisor may take to stop at once before its processes are ended without it."""
RESULT_LIMIT_S = 600.0
"""How long the object store may be out of reach before a job whose worker group is gone fails."""
PROGRESS_INTERVAL_S = 0.3
RETRY_S = 1.0
MAX_LOSSES = 5
"""How often a worker group may be lost with no step trained in between before the job fails."""

log = logging.getLogger("controller")


class Phase(enum.Enum):
    FIND = "find"
    START = "start"
    WATCH = "watch"
    RESULT = "result"
    RELEASE = "release"


@dataclass
class Losses:
    """How often a job lost its worker group at the same step."""

    step: int = -1
    count: int = 0

    def add(self, step: int) -> int:
        self.count = self.count + 1 if step == self.step else 1
        self.step = step
        return self.count


@dataclass
class Life:
    """The state of mind about one active job. Lost with the controller and found again from the store and Ray."""

    store: JobStore
    groups: WorkerGroups
    phase: Phase
    losses: Losses = field(default_factory=Losses)
    since_s: float = 0.0
    """When this phase began."""
    not_before_s: float = 0.0
    source: str = ""
    cursor: int = 0
    written_s: float = 0.0
    write_interval_s: float = PROGRESS_INTERVAL_S
    """Progress alone is written so often."""
    status_interval_s: float = 0.0
    """A supervisor is asked so often."""
    heard_s: float = 0.0
    """When it answered last."""
    stop_now_s: float | None = None
    """Since when, in this phase, it is to stop at once."""
    began_s: float = 0.0
    """When the job was given its place or, after a restart of the controller, found again."""
    gone_nodes: list[str] = field(default_factory=list)
    """Of its place, by the newest look at the cluster."""
    facts: Facts = field(default_factory=Facts)
    """For the scheduler."""
    resumed: bool = False
    """The start that the controller before this one did not bring to its end was gone on with."""
    refused_s: float | None = None
    """Since when, in this phase, Ray has not done all that its start needs."""
    why_lost: str = ""
    counts: bool = True
    """The loss of its worker group: as one of `MAX_LOSSES`."""
    unwritten: JobResult | None = None
    """What the supervisor says it could not write."""
    end: JobResult | None = None
    question: Future[Any] | None = None

    def __post_init__(self) -> None:
        self.orders = Orders(self.groups)
        self.sought = self.phase is Phase.FIND
        """It ran before this controller did, and its supervisor is not found, or not yet."""

    def advance(self, job: Job, now: float) -> Job:
        """Take the answer that has come, write what it means, ask the next thing. Returns the job as it is now."""
        self.since_s = self.since_s or now
        if (early := self._overruled(job, now)) is not None:
            self._release(early, now)
        if self.phase is Phase.WATCH:
            job = self._pass_orders_on(job, now)
        if self.question is None and now >= self.not_before_s and not (self.phase is Phase.WATCH and self._has_just_heard(now)):
            self.question = self._ask(job)
        if self.question is None or not self.question.done():
            return job
        question, self.question = self.question, None
        error = question.exception()
        if error is None:
            return self._hear(job, question.result(), now)
        return self._failed(job, error, now)

    def _has_just_heard(self, now: float) -> bool:
        return now - self.heard_s < self.status_interval_s

    def _ask(self, job: Job) -> Future[Any]:
        match self.phase:
            case Phase.FIND:
                return self.groups.find(job)
            case Phase.START:
                return self.groups.start(job)
            case Phase.WATCH:
                return self.groups.status(job, self.cursor)
            case Phase.RESULT:
                return self.groups.result(job)
            case Phase.RELEASE:
                return self.groups.release(job)

    def _hear(self, job: Job, answer: Any, now: float) -> Job:
        match self.phase:
            case Phase.FIND:
                return self._found(job, answer, now)
            case Phase.START:
                return self._started(job, answer, now)
            case Phase.WATCH:
                return self._heard(job, answer, now)
            case Phase.RESULT:
                return self._read(job, answer, now)
            case Phase.RELEASE:
                return self._released(job, now)

    def preempt(self, job: Job, why: str, deadline_s: float | None, now: float) -> None:
        """Its place is taken away. For every round in which the reason holds."""
        if self.phase is Phase.WATCH and now >= self.not_before_s:
            self.orders.leave("preempt", job, self.source, lambda: self.groups.preempt(job, why, deadline_s))

    def may_grow(self, job: Job, now: float) -> bool:
        """Whether the job may be told to leave for a larger place."""
        settled = self.phase is Phase.WATCH and job.state is JobState.RUNNING and not job.stop_requested
        return settled and now - self.began_s >= job.spec.recovery.grow_interval_s

    # answers

    def _found(self, job: Job, found: bool, now: float) -> Job:
        self.why_lost, self.sought = "its worker group was gone", not found
        if found:
            self.facts = remembered(self.store, job)
        self._enter(Phase.WATCH if found else Phase.RESULT, now)
        return job

    def _started(self, job: Job, awaited: str, now: float) -> Job:
        """`awaited`: what Ray has yet to do."""
        if not awaited:
            self.sought = False
            self._enter(Phase.WATCH, now)
            return job
        self.refused_s = now if self.refused_s is None else self.refused_s
        if self.gone_nodes:
            self._lose(f"node {self.gone_nodes[0][:8]} was lost before it started", now, counts=False)
        elif now - self.refused_s > START_LIMIT_S:
            self._lose(f"Ray did not {awaited} within {START_LIMIT_S:.0f} s", now, counts=False)
        return job

    def _heard(self, job: Job, status: GroupStatus, now: float) -> Job:
        self.heard_s = now
        teller = source(job, status.source)
        if teller != self.source:
            self.source, self.cursor = teller, self.store.cursor(job.id, teller)
        if status.events:
            fresh = [event for number, event in status.events if number > self.cursor]
            self.cursor = self.store.append_from(job.id, teller, status.events)
            self.facts = heard(self.facts, job, fresh)
        changes, events = self._news(job, status, now)
        if changes:
            job = self.store.update(job, events, **changes)
            self.written_s = now
        if status.ended:  # its last progress is written: one that a client has come before is asked for again
            self.why_lost, self.unwritten = "it ended, but its result could not be written", status.unwritten
            self._enter(Phase.RESULT, now)
        return job

    def _news(self, job: Job, status: GroupStatus, now: float) -> tuple[dict[str, Any], list[Event]]:
        moves = status.state is not job.state and status.state in TRANSITIONS[job.state] and status.state.active
        due = status.ended or moves or self._may_write(job, now)
        changes: dict[str, Any] = {"state": status.state} if moves else {}
        if due and status.progress != job.progress:
            changes["progress"] = status.progress
        told = receipt(replace(job, **changes), now) if moves else None
        return ({**changes, "order": None}, [told]) if told is not None else (changes, [])

    def _may_write(self, job: Job, now: float) -> bool:
        """Progress alone: once in each interval, which begins for each job at another moment, so that not all are written in one round."""
        begins_s = crc32(job.id.encode()) / 2**32 * self.write_interval_s
        return (now + begins_s) // self.write_interval_s > (self.written_s + begins_s) // self.write_interval_s

    def _read(self, job: Job, result: JobResult | None, now: float) -> Job:
        result = result or self.unwritten
        if result is not None:
            self._release(result, now)
        elif job.stop_requested:
            self._release(stopped(job), now)
        elif self.sought and not self.resumed and job.state is JobState.STARTING:
            self.resumed = True
            self._enter(Phase.START, now)
        elif self.counts and self.losses.add(job.progress.committed_step or 0) > MAX_LOSSES:
            message = f"its worker group was lost {MAX_LOSSES + 1} times without progress; the last time because {self.why_lost}"
            self._release(ended(job, EndReason.INTERNAL, message), now)
        else:
            self._release(None, now)
        return job

    def _released(self, job: Job, now: float) -> Job:
        if self.end is None:
            return requeue(self.store, job, now, self.why_lost)
        return finish(self.store, job, self.end, now)

    # trouble

    def _failed(self, job: Job, error: BaseException, now: float) -> Job:
        if not isinstance(error, Exception):
            raise error
        log.warning("%s of %s failed: %s: %s", self.phase.value, job.id, type(error).__name__, error)
        self.not_before_s = now + RETRY_S
        if self.phase is Phase.START:
            self._lose(f"its worker group did not start: {error}", now)
        elif isinstance(error, SupervisorGone):
            self._lose("its supervisor was gone", now)
        elif self.phase is Phase.RESULT and self.unwritten is not None:
            self._release(self.unwritten, now)
        elif self.phase is Phase.RESULT and self._is_final(error, now):
            self._release(ended(job, EndReason.STORAGE, f"its result cannot be read: {error}"), now)
        return job

    def _is_final(self, error: Exception, now: float) -> bool:
        return not isinstance(error, StorageUnavailable) or now - self.since_s > RESULT_LIMIT_S

    def _lose(self, why: str, now: float, counts: bool = True) -> None:
        """The group is gone. If it left a result it ended, else the job goes back to the queue. `counts`: it may be the job's own fault."""
        self.why_lost, self.counts = why, counts
        self._enter(Phase.RESULT, now)

    def _release(self, end: JobResult | None, now: float) -> None:
        self.end, self.question = end, None
        self._enter(Phase.RELEASE, now)

    def _enter(self, phase: Phase, now: float) -> None:
        self.phase, self.since_s, self.stop_now_s, self.refused_s = phase, now, None, None

    # stopping

    def _overruled(self, job: Job, now: float) -> JobResult | None:
        """The end of a job that is to leave before it has a supervisor, or whose supervisor does not listen."""
        if self.phase is Phase.START:
            in_flight = self.question is not None and not self.question.done()  # it may be making what `release` must find
            return None if in_flight else _called_off(job)
        if self.phase is not Phase.RELEASE and job.stop_requested == "now":
            self.stop_now_s = now if self.stop_now_s is None else self.stop_now_s
            if now - self.stop_now_s > STOP_NOW_LIMIT_S:
                return stopped(job)
        return None

    def _pass_orders_on(self, job: Job, now: float) -> Job:
        order = job.order if job.order is not None and not job.order.left else None
        if order is not None and order.kind == "preempt":
            self.preempt(job, order.why, None, now)
        elif order is not None and now >= self.not_before_s:
            self.orders.leave("resize", job, self.source, lambda: self.groups.resize(job, order.why))
        sent = self.orders.stop(job, self.source, now >= self.not_before_s)
        if sent and job.stop_requested != "now" and JobState.DRAINING in TRANSITIONS[job.state]:
            return self.store.update(job, state=JobState.DRAINING)
        return job


def _called_off(job: Job) -> JobResult | None:
    """The end of a start, if it is for nothing."""
    if job.stop_requested:
        return stopped(job)
    order = job.order
    if order is None or order.left:
        return None
    return ended(job, EndReason.PREEMPTED if order.kind == "preempt" else EndReason.RESIZED, order.why)
