"""Restart or give up: a function of the faults so far. Pure."""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from orchestrator.job import EndReason
from orchestrator.spec import RecoverySpec

LONGEST_BACKOFF_S = 60.0
MAX_USER_ERRORS = 2
"""The same error of the workload's without progress: once it may have been chance."""


class Action(enum.Enum):
    RESTART = "restart"
    FAIL = "fail"


@dataclass(frozen=True, kw_only=True)
class Fault:
    """One failure of the worker group. `committed_step` was the newest commit then (-1: none)."""

    reason: EndReason
    fingerprint: str
    committed_step: int
    external: bool = False
    """It came from outside (a signal, a lost node), so it says nothing about the job and never ends it by repetition."""

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {**dataclasses.asdict(self), "reason": self.reason.name}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Fault:
        return cls(**{**values, "reason": EndReason[values["reason"]]})


@dataclass(frozen=True, kw_only=True)
class Decision:
    action: Action
    delay_s: float
    why: str
    """For people, without the fault itself: `restart 3 of 100`."""


def decide(spec: RecoverySpec, faults: Sequence[Fault], restarts: int) -> Decision:
    """What to do after the newest of `faults`. `restarts` are those that were made, whatever for."""
    newest = faults[-1]
    if not newest.reason.retryable:
        return _fail("trying again would end in the same way")
    if restarts >= spec.max_restarts:
        return _fail(f"the worker group was restarted {restarts} times already (recovery.max_restarts={spec.max_restarts})")
    repeats = sum(1 for fault in faults if _same(fault, newest))
    allowed = _allowed_repeats(spec, newest)
    if allowed is not None and repeats > allowed:
        return _fail(f"it happened {repeats} times without a new checkpoint in between" if repeats > 1 else "no restart is allowed for it")
    return Decision(action=Action.RESTART, delay_s=_backoff_s(spec, repeats), why=f"restart {restarts + 1} of at most {spec.max_restarts}")


def preempted_too_often(spec: RecoverySpec, preemptions: int) -> str:
    """Why a job is not queued again after so many preemptions; empty: it is. They take nothing from the budgets of faults."""
    if not 0 < spec.max_preemptions <= preemptions:
        return ""
    return f"it was preempted {preemptions} times (recovery.max_preemptions={spec.max_preemptions})"


def _allowed_repeats(spec: RecoverySpec, fault: Fault) -> int | None:
    """How often the same fault may happen without progress and be answered by a restart; None: any number of times."""
    if fault.external:
        return None
    if fault.reason is EndReason.USER_ERROR:
        return min(MAX_USER_ERRORS - 1, spec.max_restarts_without_progress)
    return spec.max_restarts_without_progress


def _same(one: Fault, other: Fault) -> bool:
    return (one.fingerprint, one.committed_step) == (other.fingerprint, other.committed_step)


def _backoff_s(spec: RecoverySpec, repeats: int) -> float:
    """Nothing before the first restart; then `spec.backoff_s`, doubling. Bounded before the power grows beyond a float."""
    if repeats < 2:
        return 0.0
    return min(spec.backoff_s * 2.0 ** min(repeats - 2, 30), LONGEST_BACKOFF_S)


def _fail(why: str) -> Decision:
    return Decision(action=Action.FAIL, delay_s=0.0, why=why)
