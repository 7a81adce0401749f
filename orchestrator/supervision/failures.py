"""Restart or give up: a function of the faults so far. Pure.

| what may help | how often, without progress | pause before |
|---|---|---|
| nothing | never | |
| a retry, once | once | none |
| a retry, another node | `recovery.max_restarts_without_progress` | none before the first, then growing |
| to wait | the same | growing from the first on |
| a restart: it came from outside | any number of times | none before the first, then growing |
| a smaller micro batch | once in a run | none |
| other samples, with `guard.on_bad_numbers=skip` | `guard.max_skips` in a run | none |

The same fault is one of the same fingerprint that happened on the way from the same commit, or at the same step.
"""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from orchestrator.errors import UserError
from orchestrator.job import EndReason, Remedy
from orchestrator.layout import smaller_micro_batch
from orchestrator.spec import ActivationCheckpointing, JobSpec, Offload, OnBadNumbers, RecoverySpec

LONGEST_BACKOFF_S = 60.0
_BAD_NUMBERS = (EndReason.NAN, EndReason.SPIKE)


class Action(enum.Enum):
    RESTART = "restart"
    HALVE_MICRO_BATCH = "halve micro batch"
    SKIP_SAMPLES = "skip samples"
    FAIL = "fail"


@dataclass(frozen=True, kw_only=True)
class Fault:
    """One failure of the worker group."""

    reason: EndReason
    remedy: Remedy
    fingerprint: str
    step: int
    """The newest that was told of."""
    committed_step: int
    """The newest commit then; -1: none."""
    micro_batch_size: int
    """With which it happened."""
    window: tuple[int, int] | None = None
    """Global positions of the samples that it came with, where samples may be its cause."""

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {**dataclasses.asdict(self), "reason": self.reason.name, "remedy": self.remedy.name}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Fault:
        known = {"reason": EndReason[values["reason"]], "remedy": Remedy[values["remedy"]]}
        return cls(**{**values, **known, "window": tuple(values["window"]) if values.get("window") else None})


@dataclass(frozen=True, kw_only=True)
class Decision:
    action: Action
    why: str
    """For people, without the fault itself: `restart 3 of 100`."""
    delay_s: float = 0.0
    micro_batch_size: int = 0
    """Of the next attempt, where it is to be a smaller one."""
    skipped: tuple[int, int] | None = None
    """Global positions of the samples that the next attempt is to pass over."""
    blames_node: bool = False
    """The node of the rank that failed is at fault: another one would help."""


def decide(spec: JobSpec, faults: Sequence[Fault], restarts: int) -> Decision:
    """What to do after the newest of `faults`. `spec`: as it was asked for. `restarts` are those that were made, whatever for."""
    newest, recovery = faults[-1], spec.recovery
    remedy = _remedy(spec, newest)
    if remedy is Remedy.NONE:
        return _fail("trying again would end in the same way")
    if restarts >= recovery.max_restarts:
        return _fail(f"the worker group was restarted {restarts} times already (recovery.max_restarts={recovery.max_restarts})")
    if newest.reason in _BAD_NUMBERS and spec.guard.on_bad_numbers is not OnBadNumbers.rewind:
        return _other_samples(spec, faults)
    allowed = _allowed_repeats(recovery, remedy)
    repeats = sum(1 for fault in faults if _same(fault, newest))
    if allowed == 0:
        return _fail("no restart is allowed for it")
    if remedy is Remedy.SMALLER_MICRO_BATCH:
        return _smaller(spec, newest)
    if allowed is not None and repeats > allowed:
        return _fail(f"it happened {repeats} times without a new checkpoint in between")
    return Decision(
        action=Action.RESTART,
        delay_s=_backoff_s(recovery, repeats if remedy is Remedy.WAIT else repeats - 1),
        why=f"restart {restarts + 1} of at most {recovery.max_restarts}",
        blames_node=remedy is Remedy.OTHER_NODE,
    )


def preempted_too_often(spec: RecoverySpec, preemptions: int) -> str:
    """Why a job is not queued again after so many preemptions; empty: it is. They take nothing from the budgets of faults."""
    if not 0 < spec.max_preemptions <= preemptions:
        return ""
    return f"it was preempted {preemptions} times (recovery.max_preemptions={spec.max_preemptions})"


def _remedy(spec: JobSpec, fault: Fault) -> Remedy:
    """A smaller micro batch takes less of the host's memory only where the host computes."""
    on_gpus = spec.resources.gpus_per_worker > 0
    return Remedy.WAIT if fault.reason is EndReason.HOST_OUT_OF_MEMORY and on_gpus else fault.remedy


def _allowed_repeats(spec: RecoverySpec, remedy: Remedy) -> int | None:
    """How often the same fault may happen without progress and be answered by a restart; None: any number of times."""
    if remedy is Remedy.RESTART:
        return None
    return min(1, spec.max_restarts_without_progress) if remedy is Remedy.RETRY_ONCE else spec.max_restarts_without_progress


def _same(one: Fault, other: Fault) -> bool:
    return one.fingerprint == other.fingerprint and (one.committed_step == other.committed_step or one.step == other.step)


def _other_samples(spec: JobSpec, faults: Sequence[Fault]) -> Decision:
    window, guard = faults[-1].window, spec.guard
    if guard.on_bad_numbers is OnBadNumbers.stop or window is None:
        return _fail(f"guard.on_bad_numbers={guard.on_bad_numbers.value}")
    skips = sum(1 for fault in faults if fault.reason in _BAD_NUMBERS)
    if skips > guard.max_skips:
        return _fail(f"samples were passed over {guard.max_skips} times already (guard.max_skips)")
    why = f"without the samples {window[0]:,} to {window[1] - 1:,}, skip {skips} of at most {guard.max_skips}"
    return Decision(action=Action.SKIP_SAMPLES, why=why, skipped=window)


def _smaller(spec: JobSpec, fault: Fault) -> Decision:
    """Once: what does not fit in half is not a matter of the micro batch."""
    found, asked = smaller_micro_batch(spec), spec.training.micro_batch_size
    if fault.micro_batch_size < asked:
        return _fail(f"training.micro_batch_size was lowered from {asked} to {fault.micro_batch_size} already; {_advice(spec)}")
    if found is None:
        return _fail(f"training.micro_batch_size={asked} cannot be lowered; {_advice(spec)}")
    new = found.training.micro_batch_size
    why = f"micro batch {new} instead of {asked}, at the same global batch of {spec.training.global_batch_size}"
    return Decision(action=Action.HALVE_MICRO_BATCH, micro_batch_size=new, why=why)


def _advice(spec: JobSpec) -> str:
    """What takes less memory, is not in use yet and possible for this job."""
    parts, ways = spec.parallelism, []
    if spec.training.activation_checkpointing is not ActivationCheckpointing.full:
        ways.append("training.activation_checkpointing=full")
    higher = (stage for stage in range(parts.zero_stage + 1, 4) if _can_be(spec, zero_stage=stage))
    if spec.resources.num_workers > 1:
        ways += [f"parallelism.zero_stage={stage}" for stage in list(higher)[:1]]
    if spec.resources.gpus_per_worker and parts.offload_optimizer is Offload.none and _can_be(spec, offload_optimizer=Offload.cpu):
        ways.append("parallelism.offload_optimizer=cpu")
    return f"what takes less memory: {', '.join([*ways, 'more workers, a smaller model or shorter samples'])}"


def _can_be(spec: JobSpec, **parallelism: Any) -> bool:
    try:
        dataclasses.replace(spec, parallelism=dataclasses.replace(spec.parallelism, **parallelism))
    except UserError:
        return False
    return True


def _backoff_s(spec: RecoverySpec, count: int) -> float:
    """Before the `count`-th pause: `spec.backoff_s`, doubling. Bounded before the power grows beyond a float."""
    return min(spec.backoff_s * 2.0 ** min(count - 1, 30), LONGEST_BACKOFF_S) if count > 0 else 0.0


def _fail(why: str) -> Decision:
    return Decision(action=Action.FAIL, why=why)
