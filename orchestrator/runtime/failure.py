"""What a rank says when it fails: whose fault it is, in which words, and how to know the same fault again. Torch-free."""

from __future__ import annotations

import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    FencedError,
    LayoutError,
    LossSpike,
    NotFinite,
    ReplicaDrift,
    StorageError,
    StorageUnavailable,
    TrainingError,
    WorkloadError,
)
from orchestrator.evidence import Evidence, normal_form, of_exception
from orchestrator.job import EndReason, Remedy

_BY_CLASS: tuple[tuple[type[BaseException], EndReason, Remedy], ...] = (
    (DataError, EndReason.DATA, Remedy.NONE),
    (ConfigError, EndReason.CONFIGURATION, Remedy.NONE),
    (LayoutError, EndReason.CONFIGURATION, Remedy.NONE),
    (WorkloadError, EndReason.USER_ERROR, Remedy.NONE),
    (StorageUnavailable, EndReason.STORAGE, Remedy.WAIT),
    (StorageError, EndReason.STORAGE, Remedy.NONE),
    (FencedError, EndReason.FENCED, Remedy.NONE),
    (CheckpointError, EndReason.CHECKPOINT, Remedy.NONE),
    (NotFinite, EndReason.NAN, EndReason.NAN.remedy),
    (LossSpike, EndReason.SPIKE, EndReason.SPIKE.remedy),
    (ReplicaDrift, EndReason.DRIFT, EndReason.DRIFT.remedy),
)
_FRAMES = 3


@dataclass(frozen=True)
class _Cause:
    reason: EndReason
    remedy: Remedy
    evidence: Evidence | None = None


def describe(error: BaseException, workload_file: str) -> dict[str, Any]:
    """Fields of the `error` message. `workload_file` is where the workload's module stands; empty: not known yet.

    `echo` marks an error that only says that another rank was lost; that rank's own error is the one to show. The traceback of an
    error that passes through the workload begins there.
    """
    cause = _cause(error, workload_file)
    return {
        "end_reason": cause.reason.name,
        "remedy": cause.remedy.name,
        "message": f"{error}" if _is_ours(error) else f"{type(error).__name__}: {error}",
        "traceback": users_traceback(error, workload_file),
        "fingerprint": _fingerprint(error, cause),
        "echo": error.echo if isinstance(error, TrainingError) else cause.evidence is not None and cause.evidence.echo,
        **({"window": list(error.window)} if isinstance(error, TrainingError) and error.window else {}),
    }


def fingerprint(error: BaseException) -> str:
    """The error's type, its innermost functions and its words: the same for the same fault, whatever step, line or value it had."""
    frames = traceback.extract_tb(error.__traceback__)[-_FRAMES:]
    places = (f"{Path(frame.filename).name}:{frame.name}" for frame in frames)
    return " ".join([type(error).__name__, *places, normal_form(str(error))])


def users_traceback(error: BaseException, workload_file: str) -> str:
    """The traceback from the first frame in the workload on, of the error and of those that led to it; all of it if none is there."""
    told = traceback.TracebackException.from_exception(error)
    part: traceback.TracebackException | None = told
    while part is not None:
        files = [frame.filename for frame in part.stack]
        if workload_file in files:
            part.stack = traceback.StackSummary.from_list(part.stack[files.index(workload_file) :])
        part = part.__cause__ or part.__context__
    return "".join(told.format())


def _cause(error: BaseException, workload_file: str) -> _Cause:
    for kind, reason, remedy in _BY_CLASS:
        if isinstance(error, kind):
            return _Cause(reason, remedy)
    found = _evidence(error)
    mine = _passes_through(error, workload_file)
    if found is None:
        reason = EndReason.USER_ERROR if mine else EndReason.INTERNAL
        return _Cause(reason, reason.remedy)
    if isinstance(error, ImportError | SyntaxError) and not mine:
        return _Cause(EndReason.INTERNAL, found.remedy, found)
    return _Cause(found.reason, found.remedy, found)


def _evidence(error: BaseException) -> Evidence | None:
    """Of the error itself, else of the one that it was raised from."""
    classes = [f"{kind.__module__}.{kind.__qualname__}" for kind in type(error).__mro__ if kind not in (BaseException, Exception, object)]
    found = of_exception(classes, str(error))
    return _evidence(error.__cause__) if found is None and error.__cause__ is not None else found


def _fingerprint(error: BaseException, cause: _Cause) -> str:
    """A fault of the surroundings shows itself in any function; that of code, where it is."""
    if cause.evidence is None or cause.reason in (EndReason.USER_ERROR, EndReason.INTERNAL):
        return fingerprint(error)
    return f"{cause.reason.name} {cause.evidence.name}"


def _passes_through(error: BaseException, workload_file: str) -> bool:
    files = {frame.filename for frame in traceback.extract_tb(error.__traceback__)}
    if isinstance(error, SyntaxError) and error.filename:
        files.add(error.filename)
    return bool(workload_file) and workload_file in files


def _is_ours(error: BaseException) -> bool:
    return type(error).__module__ == "orchestrator.errors"
