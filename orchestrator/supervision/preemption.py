"""Preemption: who takes the job's place away, by when, and whether a save still fits. Pure.

SIGTERM to one of the job's processes, Ray's drain notice of one of its nodes and the scheduler's order all mean the same: save within the
grace, leave, go on later from there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

RESERVE_S = 1.0
"""Of the grace, kept for the ranks to leave and for the result to be written."""


@dataclass(frozen=True)
class Preemption:
    why: str
    """Who asked, for people: `rank 1 got SIGTERM`."""
    deadline_s: float
    """Seconds since 1970. After it the job's processes may be gone."""


@dataclass(frozen=True, kw_only=True)
class SaveCost:
    """What the newest committed save has cost. 0: not measured yet."""

    stage_s: float = 0.0
    """Copy into host memory, of the slowest rank."""
    num_bytes: int = 0
    """Sent by all uploaders together."""
    bytes_per_s: float = 0.0
    """At which all uploaders together sent them."""
    commit_s: float = 0.0
    """From the last byte to the commit."""


@dataclass(frozen=True, kw_only=True)
class Judgement:
    fits: bool
    sentence: str
    """For people, with the figures."""
    figures: Mapping[str, float]
    """The same for the event: seconds, bytes, bytes/s."""


def notice(why: str, deadline_s: float | None, grace_s: float, now: float) -> Preemption:
    """`deadline_s`: None if who asks names none; then `grace_s` from `now` on."""
    return Preemption(why, now + grace_s if deadline_s is None else deadline_s)


def measured(stage_s: float, num_bytes: int, upload_s: float, commit_s: float, limit_bytes_per_s: float) -> SaveCost:
    """`limit_bytes_per_s`: what the uploaders may send at most (0: no limit), which a short save may not have met."""
    rate = num_bytes / max(upload_s, 1e-3)
    return SaveCost(
        stage_s=stage_s, num_bytes=num_bytes, bytes_per_s=min(rate, limit_bytes_per_s) if limit_bytes_per_s else rate, commit_s=commit_s
    )


def judge(cost: SaveCost, *, stages: bool, num_bytes: int, sending_s: float, grace_s: float) -> Judgement:
    """Whether what is to be saved fits `grace_s`, the seconds that are left.

    `stages`: the state is to be copied into host memory still. `num_bytes` are on their way, and have been for `sending_s` seconds. A save
    of which nothing is known fits until the grace is over.
    """
    upload_s = max(0.0, num_bytes / cost.bytes_per_s - sending_s) if cost.bytes_per_s else 0.0
    stage_s = cost.stage_s if stages else 0.0
    needed_s = stage_s + upload_s + (cost.commit_s if num_bytes or stages else 0.0)
    figures = {
        "grace_s": grace_s, "needed_s": needed_s, "stage_s": stage_s, "num_bytes": num_bytes, "bytes_per_s": cost.bytes_per_s,
        "commit_s": cost.commit_s, "reserve_s": RESERVE_S,
    }  # fmt: skip
    fits = grace_s > 0 if not num_bytes and not stages else needed_s + RESERVE_S < grace_s
    return Judgement(fits=fits, sentence=_sentence(cost, stage_s, num_bytes, sending_s, needed_s, grace_s), figures=figures)


def _sentence(cost: SaveCost, stage_s: float, num_bytes: int, sending_s: float, needed_s: float, grace_s: float) -> str:
    left = f"{max(grace_s, 0.0):.1f} s are left, {RESERVE_S:.0f} s of them for leaving"
    if not cost.bytes_per_s:
        return f"what a save takes is not measured yet; {left}"
    sent = f", under way for {sending_s:.1f} s" if sending_s else ""
    how = f"copy {stage_s:.2f} s, {num_bytes / 1e6:.3f} MB at {cost.bytes_per_s / 1e6:.3f} MB/s{sent}, commit {cost.commit_s:.2f} s"
    return f"it takes {needed_s:.1f} s more ({how}); {left}"
