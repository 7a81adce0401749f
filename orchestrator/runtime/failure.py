"""What a rank says when it fails: whose fault it is, in which words, and how to know the same fault again. Torch-free."""

from __future__ import annotations

import re
import traceback
from pathlib import Path
from typing import Any

from orchestrator.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    FencedError,
    LayoutError,
    StorageError,
    WorkloadError,
)
from orchestrator.job import EndReason

_BY_CLASS: tuple[tuple[type[BaseException], EndReason], ...] = (
    (DataError, EndReason.DATA),
    (ConfigError, EndReason.CONFIGURATION),
    (LayoutError, EndReason.CONFIGURATION),
    (WorkloadError, EndReason.USER_ERROR),
    (StorageError, EndReason.STORAGE),
    (FencedError, EndReason.FENCED),
    (CheckpointError, EndReason.CHECKPOINT),
    (MemoryError, EndReason.OUT_OF_MEMORY),
)
_OUT_OF_MEMORY = re.compile(r"out of memory|not enough memory|can't allocate memory", re.IGNORECASE)
_PEER_LOST = re.compile(
    r"connection (was )?(closed|reset|refused)|broken pipe|socket closed|failed to (recv|send)|"
    r"gloo/transport|\[.*gloo.*\] |NCCL (communicator|error)|remote process exited|Socket Timeout|\[c10d\]",
    re.IGNORECASE,
)
_FRAMES = 3


def describe(error: BaseException, workload_file: str) -> dict[str, Any]:
    """Fields of the `error` message. `workload_file` is where the workload's module stands; empty: not known yet.

    `echo` marks an error that only says that another rank was lost; that rank's own error is the one to show.
    """
    echo = is_lost_peer(error)
    return {
        "end_reason": _end_reason(error, workload_file, echo).name,
        "message": f"{error}" if _is_ours(error) else f"{type(error).__name__}: {error}",
        "traceback": "".join(traceback.format_exception(error)),
        "fingerprint": fingerprint(error),
        "echo": echo,
    }


def is_lost_peer(error: BaseException) -> bool:
    """Whether a collective failed because its other side is gone."""
    if type(error).__module__.startswith("torch.distributed") or type(error).__name__ in ("DistBackendError", "DistNetworkError"):
        return True
    return isinstance(error, RuntimeError) and _PEER_LOST.search(str(error)) is not None


def fingerprint(error: BaseException) -> str:
    """The error's type and its innermost functions: the same for the same fault, whatever step, line or value it had."""
    frames = traceback.extract_tb(error.__traceback__)[-_FRAMES:]
    return " ".join([type(error).__name__, *(f"{Path(frame.filename).name}:{frame.name}" for frame in frames)])


def _end_reason(error: BaseException, workload_file: str, echo: bool) -> EndReason:
    for kind, reason in _BY_CLASS:
        if isinstance(error, kind):
            return reason
    if isinstance(error, RuntimeError) and _OUT_OF_MEMORY.search(str(error)):
        return EndReason.OUT_OF_MEMORY
    if echo:
        return EndReason.INTERNAL
    return EndReason.USER_ERROR if _passes_through(error, workload_file) else EndReason.INTERNAL


def _passes_through(error: BaseException, workload_file: str) -> bool:
    files = {frame.filename for frame in traceback.extract_tb(error.__traceback__)}
    if isinstance(error, SyntaxError) and error.filename:
        files.add(error.filename)
    return bool(workload_file) and workload_file in files


def _is_ours(error: BaseException) -> bool:
    return type(error).__module__ == "orchestrator.errors"
