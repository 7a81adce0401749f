"""What the workers of one life of the worker group did, by bucket of the goodput ledger. Pure. `ledger` says what the buckets mean."""

from __future__ import annotations

import enum
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from orchestrator.runtime.link import Phase


class Bucket(enum.Enum):
    QUEUE = "queue"
    LAUNCH = "launch"
    BOOT = "boot"
    PROVISION = "provision"
    START = "start"
    COMPILE = "compile"
    DATA = "data"
    STEP = "step"
    EVALUATION = "evaluation"
    CHECKPOINT = "checkpoint"
    LOST = "lost"
    DETECTION = "detection"
    RECOVERY = "recovery"
    HANG = "hang"
    IDLE = "idle"
    UNATTRIBUTED = "unattributed"


Seconds = Mapping[Bucket, float]
"""Worker-seconds; what is missing is 0."""

WAITS = (Bucket.QUEUE, Bucket.LAUNCH, Bucket.BOOT)
"""The job has no place."""
WORK = (Bucket.COMPILE, Bucket.DATA, Bucket.STEP, Bucket.EVALUATION, Bucket.CHECKPOINT)
"""What is lost when a job goes on from an earlier step."""
_OF_PHASE = {
    Phase.DATA: Bucket.DATA, Phase.FORWARD: Bucket.STEP, Phase.BACKWARD: Bucket.STEP, Phase.COLLECTIVE: Bucket.STEP,
    Phase.OPTIMIZER: Bucket.STEP, Phase.COMPILE: Bucket.COMPILE, Phase.CHECKPOINT: Bucket.CHECKPOINT,
    Phase.EVALUATION: Bucket.EVALUATION, Phase.END: Bucket.IDLE,
}  # fmt: skip
"""Those of the way to the first step, START and RESTORE, belong to `start` or to `recovery`, as the attempt does."""


@dataclass(frozen=True, kw_only=True)
class RankClock:
    """A rank's clock as its agent told it; times in seconds since 1970."""

    created_s: float
    ticked_s: float
    phase: Phase
    spent_s: Sequence[float]
    """By the number of the phase, from `created_s` to `ticked_s`."""
    ended_s: float | None = None
    """When the rank had ended; None: it lives, or its agent died before it could say so."""

    @classmethod
    def of(cls, values: Mapping[str, Any], ended_s: float | None = None) -> RankClock:
        """From `Spent.to_dict`."""
        return cls(
            created_s=values["created_s"], ticked_s=values["ticked_s"], phase=Phase(values["phase"]), spent_s=values["spent_s"],
            ended_s=ended_s,
        )  # fmt: skip


@dataclass(kw_only=True)
class Life:
    """One life of the worker group: what is known of it so far. Times in seconds since 1970."""

    epoch: int
    workers: int
    base_step: int
    """The step that it goes on from."""
    began_s: float
    is_first: bool
    """Of its run: the way to its first step is `start`, that of the others `recovery`."""
    clocks: dict[int, RankClock] = field(default_factory=dict)
    saves: dict[int, dict[int, Sequence[float]]] = field(default_factory=dict)
    """Step -> rank -> seconds by phase when its save began."""
    training: bool = False
    failed_s: float | None = None
    """The first failure."""
    known_s: float | None = None
    """When the supervisor knew that it has failed."""
    hung: bool = False
    left_s: float | None = None
    """When the run was over."""


def account(life: Life, from_s: float, until_s: float) -> dict[Bucket, float]:
    """What the workers of a life did between the two times; the sum is their distance times the workers."""
    if until_s <= from_s:
        return {}
    return add_up([_account_rank(life, life.clocks.get(rank), from_s, until_s) for rank in range(life.workers)], Bucket)


def _account_rank(life: Life, clock: RankClock | None, from_s: float, until_s: float) -> dict[Bucket, float]:
    seconds = dict.fromkeys(Bucket, 0.0)
    before = Bucket.START if life.is_first else Bucket.RECOVERY
    told_s = from_s
    if clock is not None:
        created_s = min(max(clock.created_s, from_s), until_s)
        told_s = min(max(clock.ticked_s, created_s), until_s)
        seconds[before] += created_s - from_s
        _add_measured(seconds, by_bucket(clock.spent_s, life.is_first), told_s - created_s)
    turns = [life.failed_s, life.known_s, life.left_s, clock.ended_s if clock is not None else None]
    times = sorted({told_s, until_s, *(turn for turn in turns if turn is not None and told_s < turn < until_s)})
    for start, end in pairwise(times):
        seconds[_untold(life, clock, (start + end) / 2, before)] += end - start
    return seconds


def _untold(life: Life, clock: RankClock | None, at_s: float, before: Bucket) -> Bucket:
    """The bucket of a moment after a rank's last tick that was told."""
    known_s = math.inf if life.known_s is None else life.known_s
    if life.left_s is not None and at_s >= life.left_s:
        return Bucket.IDLE
    if at_s >= known_s:
        return Bucket.RECOVERY
    if life.hung:
        return Bucket.HANG
    if life.failed_s is not None and at_s >= life.failed_s:
        return Bucket.DETECTION
    if clock is None:
        return before
    if clock.ended_s is not None and at_s >= clock.ended_s:
        return Bucket.IDLE
    bucket = _OF_PHASE.get(clock.phase, before)
    is_silent = life.known_s is not None and clock.ended_s is None
    return Bucket.LOST if is_silent and bucket in WORK else bucket


def _add_measured(seconds: dict[Bucket, float], measured: Seconds, passed_s: float) -> None:
    """Wall clocks that were set meanwhile make what was measured longer than what has passed: then it is shared out in proportion."""
    total = sum(measured.values())
    scale = min(1.0, passed_s / total) if total > 0 else 0.0
    for bucket, spent in measured.items():
        seconds[bucket] += spent * scale
    seconds[Bucket.UNATTRIBUTED] += max(passed_s - total, 0.0)


def by_bucket(spent_s: Sequence[float], is_first: bool) -> dict[Bucket, float]:
    seconds: dict[Bucket, float] = {}
    for phase in Phase:
        bucket = _OF_PHASE.get(phase, Bucket.START if is_first else Bucket.RECOVERY)
        seconds[bucket] = seconds.get(bucket, 0.0) + (spent_s[phase] if phase < len(spent_s) else 0.0)
    return seconds


def add_up(parts: Iterable[Seconds], buckets: Iterable[Bucket]) -> dict[Bucket, float]:
    parts = list(parts)
    return {bucket: math.fsum(part.get(bucket, 0.0) for part in parts) for bucket in buckets}
