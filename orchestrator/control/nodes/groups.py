"""What the controller asks of the jobs' worker groups, and the double that tests use.

No call waits: each returns a future that holds the answer or the error.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Protocol

from orchestrator.errors import ClusterError
from orchestrator.events import Event
from orchestrator.job import Job, JobResult, JobState, Progress

Placement = Sequence[tuple[str, int]]
"""(Ray node id, number of ranks) of each bundle."""


class SupervisorGone(ClusterError):
    """The job has no supervisor, and Ray will not bring it back."""


@dataclass(frozen=True, kw_only=True)
class GroupStatus:
    """What a supervisor says of its job."""

    state: JobState
    """STARTING, RUNNING, RECOVERING or DRAINING."""
    progress: Progress
    source: str
    """Names one life of the supervisor: the numbers of its events are unique within it."""
    events: tuple[tuple[int, Event], ...] = ()
    ended: bool = False
    """Nothing more will happen. How it ended stands in the store, or else in `unwritten`."""
    unwritten: JobResult | None = None
    """The result, if the store did not take it."""


class WorkerGroups(Protocol):
    def take_standby(self, job: Job, placement: Placement) -> tuple[str, ...]:
        """What is up already for the job in that place: see `Job.standby`. It is the job's, once it stands in its row. Does not wait."""

    def return_standby(self, placement: Placement, standby: tuple[str, ...]) -> None:
        """What was taken for that place is not the job's after all."""

    def keep_standby(self, nodes: Sequence[str], jobs: Sequence[Job]) -> None:
        """Begin to start what is to stand by on `nodes` (Ray's ids) and is missing. `jobs`: those that have not ended. Does not wait."""

    def find(self, job: Job) -> Future[bool]:
        """Is there a supervisor of the job?"""

    def start(self, job: Job) -> Future[str]:
        """Reserve `job.placement` and start the supervisor. What Ray has yet to do, in words: ask again. Asking twice does no harm."""

    def status(self, job: Job, after_event: int) -> Future[GroupStatus]:
        """Fails with SupervisorGone if there is none (any more)."""

    def stop(self, job: Job, mode: str) -> Future[None]:
        """Tell the supervisor to end the job: `drain` or `now`."""

    def preempt(self, job: Job, why: str, deadline_s: float | None) -> Future[None]:
        """Tell the supervisor to save and to leave by then (seconds since 1970; None: within `recovery.preemption_grace_s`)."""

    def resize(self, job: Job, why: str) -> Future[None]:
        """Tell the supervisor to save, however long it takes, and to leave: the job starts again with another number of workers."""

    def release(self, job: Job) -> Future[None]:
        """End what is left of supervisor and agents and give the place back. No error if nothing is left."""

    def result(self, job: Job) -> Future[JobResult | None]:
        """How run `job.run` ended, as the supervisor wrote it; None if it did not."""


def done(value: Any = None) -> Future[Any]:
    future: Future[Any] = Future()
    future.set_result(value)
    return future


def failed(error: Exception) -> Future[Any]:
    future: Future[Any] = Future()
    future.set_exception(error)
    return future


@dataclass
class ScriptedGroups:
    """The double: worker groups that do as they are told, by job id. Answers come at once unless `hold` says otherwise."""

    supervisors: dict[str, GroupStatus] = field(default_factory=dict)
    results: dict[tuple[str, int], JobResult] = field(default_factory=dict)
    start_errors: dict[str, Exception] = field(default_factory=dict)
    pending: set[str] = field(default_factory=set)
    """Jobs whose place is not ready."""
    held: set[str] = field(default_factory=set)
    """Names of methods that do not answer."""
    unanswered: list[Future[Any]] = field(default_factory=list)
    """What these returned."""
    calls: list[tuple[str, str]] = field(default_factory=list)
    """(method, job id) of all calls but `status`, and (`stop drain`, job id)."""
    preemptions: list[tuple[str, str, float | None]] = field(default_factory=list)
    """(job id, why, deadline)."""
    standby: tuple[str, ...] = ()
    """What the next job gets."""
    kept: list[tuple[str, ...]] = field(default_factory=list)
    """The nodes of each call of `keep_standby`."""
    resizes: list[tuple[str, str]] = field(default_factory=list)
    """(job id, why)."""
    first_status: Callable[[Job], GroupStatus] = lambda job: GroupStatus(state=JobState.STARTING, progress=job.progress, source="1")

    def take_standby(self, job: Job, placement: Placement) -> tuple[str, ...]:
        taken, self.standby = self.standby, ()
        return taken

    def return_standby(self, placement: Placement, standby: tuple[str, ...]) -> None:
        self.standby = standby

    def keep_standby(self, nodes: Sequence[str], jobs: Sequence[Job]) -> None:
        self.kept.append(tuple(nodes))

    def find(self, job: Job) -> Future[bool]:
        return self._answer("find", job, lambda: job.id in self.supervisors)

    def start(self, job: Job) -> Future[str]:
        return self._answer("start", job, lambda: self._start(job))

    def status(self, job: Job, after_event: int) -> Future[GroupStatus]:
        if job.id not in self.supervisors:
            return failed(SupervisorGone(f"{job.id} has no supervisor"))
        return Future() if "status" in self.held else done(self.supervisors[job.id])

    def stop(self, job: Job, mode: str) -> Future[None]:
        return self._answer(f"stop {mode}", job, lambda: None)

    def preempt(self, job: Job, why: str, deadline_s: float | None) -> Future[None]:
        self.preemptions.append((job.id, why, deadline_s))
        return self._answer("preempt", job, lambda: None)

    def resize(self, job: Job, why: str) -> Future[None]:
        self.resizes.append((job.id, why))
        return self._answer("resize", job, lambda: None)

    def release(self, job: Job) -> Future[None]:
        return self._answer("release", job, lambda: self.supervisors.pop(job.id, None) and None)

    def result(self, job: Job) -> Future[JobResult | None]:
        return self._answer("result", job, lambda: self.results.get((job.id, job.run)))

    def _start(self, job: Job) -> str:
        if job.id in self.start_errors:
            raise self.start_errors[job.id]
        if job.id in self.pending:
            return "reserve its place"
        self.supervisors[job.id] = self.first_status(job)
        return ""

    def _answer(self, method: str, job: Job, call: Callable[[], Any]) -> Future[Any]:
        self.calls.append((method, job.id))
        if method in self.held:
            self.unanswered.append(Future())
            return self.unanswered[-1]
        try:
            return done(call())
        except ClusterError as error:
            return failed(error)
