"""The goodput ledger: every worker-second of a job, from its submission to its end, in exactly one bucket. Pure.

    queue        waits for a place: from the submission, a resume or a preemption until a place is given or nodes are asked for
    launch       nodes were asked of Ray's autoscaler, and not all of them are on their way
    boot         all of them are, until they have joined the cluster and the place is given
    provision    the place is reserved, and the supervisor starts
    start        until a run's first attempt has forked, built and restored its ranks
    compile      the first step of a model that is compiled
    data         a rank waits for its batch
    step         forward, backward, collectives, optimizer
    evaluation, checkpoint   as the rank's clock says; a checkpoint's part is what the rank itself waits or does for it
    lost         work that was done and is done again: what an attempt did after the step that the next one goes on from
    detection    from the first failure of an attempt until the supervisor knew
    hang         of an attempt that hung, from each rank's last tick until the supervisor knew; such an attempt has no detection
    recovery     from then on until the next attempt's ranks are built and restored: kill, backoff, fork, restore
    idle         a rank has ended and others have not; what the job writes at its end
    unattributed what nobody can account for

What a rank did until its last tick is measured, by its clock; the rest follows from the times of these turns. Two rules take the place of
a measurement. A rank whose agent died without a word of its end: its time since the last that was told is lost (it had staged nothing
since, or that would have been told). A supervisor that died and was started again: what the ranks did meanwhile is lost, because nothing
could be committed. A worker group that was lost with its supervisor: lost up to the last record of the journal, detection from there until
the job was queued again.

The terms follow "ML Productivity Goodput" (Google Cloud, 2024) and the effective training time ratio of Kokolis et al. 2024
(arXiv:2410.21680): `goodput_share` is `step` over all but `queue`, `launch` and `boot`, in which the job holds nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from orchestrator.job import Job, JobState
from orchestrator.supervision.accounting import WAITS, WORK, Bucket, Life, Seconds, account, add_up, by_bucket

MAX_MARKS = 8
"""Steps that a job can go on from, of which it is kept how much had been done by then. An older one counts all since as lost."""


@dataclass(frozen=True, kw_only=True)
class Ledger:
    """Of all the job's time until `until_s` (seconds since 1970); the values of `seconds` add up to `worker_s`."""

    until_s: float
    wall_s: float = 0.0
    """Without the time between an end and a resume."""
    worker_s: float = 0.0
    """Wall time times workers."""
    seconds: Seconds = field(default_factory=dict)
    marks: Mapping[int, Seconds] = field(default_factory=dict)
    """Step that may be gone on from -> what of `WORK` had been done by then and still counts."""
    training: bool = False
    lives: int = 0
    """Of the worker group, over all runs."""
    run: int = 0
    closed: bool = False
    """The run has written down its end."""

    @property
    def held_s(self) -> float:
        """Worker-seconds in which the job held its place."""
        return max(self.worker_s - math.fsum(self.seconds.get(bucket, 0.0) for bucket in WAITS), 0.0)

    @property
    def goodput_share(self) -> float:
        """Of the time in which it held its place; 0 if it never did."""
        return min(self.seconds.get(Bucket.STEP, 0.0) / self.held_s, 1.0) if self.held_s else 0.0

    def grown(self, bucket: Bucket, until_s: float, workers: int) -> Ledger:
        """All workers were in one bucket until then; nothing if that is no later."""
        return self._with({bucket: max(until_s - self.until_s, 0.0) * workers}, until_s, workers)

    def rewound(self, step: int) -> Ledger:
        """The job goes on from `step`: what was done after it is lost. Without any mark this is where the ledger begins, and nothing is."""
        known = [marked for marked in self.marks if marked <= step]
        done = {bucket: self.seconds.get(bucket, 0.0) for bucket in WORK}
        if not self.marks:
            return replace(self, marks={step: done})
        kept = self.marks[max(known)] if known else {}
        kept = {bucket: min(seconds, kept.get(bucket, 0.0)) for bucket, seconds in done.items()}
        lost = self.seconds.get(Bucket.LOST, 0.0) + sum(done[bucket] - kept[bucket] for bucket in WORK)
        marks = {marked: self.marks[marked] for marked in known} or {step: kept}
        return replace(self, seconds={**self.seconds, **kept, Bucket.LOST: lost}, marks=marks)

    def lived(self, life: Life, until_s: float) -> Ledger:
        """With what a life of the worker group did until then, beginning where the ledger ends."""
        before = self.rewound(life.base_step)
        work = {bucket: before.seconds.get(bucket, 0.0) for bucket in WORK}
        marks = dict(before.marks)
        for step, by_rank in sorted(life.saves.items()):
            if len(by_rank) == life.workers:
                marks[step] = add_up([work, *(by_bucket(spent_s, life.is_first) for spent_s in by_rank.values())], WORK)
        after = before._with(account(life, before.until_s, until_s), until_s, life.workers)
        marks = {step: marks[step] for step in sorted(marks)[-MAX_MARKS:]}
        return replace(after, marks=marks, training=life.training and life.known_s is None, lives=self.lives + 1)

    def _with(self, seconds: Seconds, until_s: float, workers: int) -> Ledger:
        passed_s = max(until_s - self.until_s, 0.0)
        return replace(
            self, until_s=max(until_s, self.until_s), wall_s=self.wall_s + passed_s, worker_s=self.worker_s + passed_s * workers,
            seconds=add_up([self.seconds, seconds], Bucket),
        )  # fmt: skip

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "until_s": self.until_s, "wall_s": self.wall_s, "worker_s": self.worker_s, "goodput_share": self.goodput_share,
            "seconds": _named(self.seconds), "marks": {str(step): _named(done) for step, done in self.marks.items()},
            "training": self.training, "lives": self.lives, "run": self.run, "closed": self.closed,
        }  # fmt: skip

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Ledger:
        """The inverse of `to_dict`."""
        plain = {name: values[name] for name in ("until_s", "wall_s", "worker_s", "training", "lives", "run", "closed")}
        marks = {int(step): _buckets(done) for step, done in values["marks"].items()}
        return cls(**plain, seconds=_buckets(values["seconds"]), marks=marks)


@dataclass(frozen=True, kw_only=True)
class Wait:
    """Of a run for its place; seconds since 1970, 0: not known."""

    queued_s: float = 0.0
    """The submission, or the newest resume of a job that had ended."""
    since_s: float = 0.0
    """The same, or a later loss of its place."""
    admitted_s: float = 0.0
    """When the place was given."""
    asked_s: float = 0.0
    """When nodes were asked for it that were not there."""
    launched_s: float = 0.0
    """When all of them were on their way."""

    @classmethod
    def of(cls, job: Job) -> Wait:
        since_s, progress = max(job.queued_s, job.progress.waits_since_s), job.progress
        asked_s = progress.nodes_asked_s if progress.nodes_asked_s >= since_s else 0.0
        launched_s = progress.nodes_launched_s if asked_s and progress.nodes_launched_s >= asked_s else 0.0
        return cls(queued_s=job.queued_s, since_s=since_s, admitted_s=job.started_s or 0.0, asked_s=asked_s, launched_s=launched_s)

    def ends(self, until_s: float) -> tuple[tuple[Bucket, float], ...]:
        """(bucket, when it ended) of a wait for a place that lasted until then."""
        asked_s = self.asked_s if 0.0 < self.asked_s < until_s else until_s
        launched_s = self.launched_s if asked_s <= self.launched_s < until_s else until_s
        return (Bucket.QUEUE, asked_s), (Bucket.LAUNCH, launched_s), (Bucket.BOOT, until_s)


def opened(before: Ledger | None, *, run: int, wait: Wait, heard_s: float, now_s: float, workers: int) -> Ledger:
    """The ledger of a run whose supervisor begins to live at `now_s`.

    `before`: as the newest record says. `heard_s`: when the supervisor before wrote its last record of any kind.
    """
    admitted_s = min(wait.admitted_s or now_s, now_s)
    since_s = min(wait.since_s or admitted_s, admitted_s)
    if before is not None and before.run == run and not before.closed and admitted_s <= before.until_s:
        ledger = before.grown(_unheard(before), now_s, workers)  # only the supervisor was started again
    else:
        ledger = _waiting(before, wait.queued_s or since_s, since_s, heard_s, workers)
    for bucket, ended_s in (*wait.ends(admitted_s), (Bucket.PROVISION, now_s)):
        ledger = ledger.grown(bucket, ended_s, workers)
    return replace(ledger, run=run, closed=False, training=False)


def as_of(job: Job, now_s: float) -> Ledger | None:
    """The ledger of a job, with what its supervisor is not there to write down. None: there is none yet."""
    workers, wait = job.spec.resources.num_workers, Wait.of(job)
    known = Ledger.from_dict(job.progress.ledger) if job.progress.ledger else None
    heard_s = job.progress.updated_s
    if job.state is JobState.QUEUED:
        waited = _waiting(known, wait.queued_s, wait.since_s, heard_s, workers)
        for bucket, ended_s in wait.ends(now_s):
            waited = waited.grown(bucket, ended_s, workers)
        return waited
    if known is not None and job.state.terminal and job.ended_s is not None:
        return _waiting(known, wait.queued_s, job.ended_s, heard_s, workers)
    return known


def _waiting(before: Ledger | None, queued_s: float, since_s: float, heard_s: float, workers: int) -> Ledger:
    """Up to where the job begins to wait for a place, or for nothing any more."""
    if before is None:
        return Ledger(until_s=queued_s).grown(Bucket.QUEUE, since_s, workers)
    if queued_s > before.until_s:
        return replace(before, until_s=queued_s)  # it had ended, and was resumed
    if before.closed:
        return before.grown(Bucket.IDLE, since_s, workers)
    return before.grown(_unheard(before), min(heard_s, since_s), workers).grown(Bucket.DETECTION, since_s, workers)


def _unheard(ledger: Ledger) -> Bucket:
    """What the workers did after the last record of a supervisor that died."""
    if ledger.training:
        return Bucket.LOST
    return Bucket.RECOVERY if ledger.lives else Bucket.START


def _named(seconds: Seconds) -> dict[str, float]:
    return {bucket.value: passed_s for bucket, passed_s in seconds.items()}


def _buckets(values: Mapping[str, float]) -> dict[Bucket, float]:
    return {Bucket(name): passed_s for name, passed_s in values.items()}
