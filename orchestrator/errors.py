"""The error tree. Every error that a person may see is one of these.

    OrchestratorError                 exit code 1
    ├── UserError                     exit code 2: what was asked for cannot be done as asked
    │   ├── ConfigError               a flag, its value, what is allowed, the nearest valid name
    │   ├── LayoutError               a batch, world size or parallel layout that cannot be
    │   ├── JobNotFound               no job of that name
    │   ├── DataError                 a source that is missing, a shard that is corrupt, an edited data set
    │   ├── WorkloadError             an entry point that cannot be imported or lacks a method
    │   ├── AuthenticationError       no token, or one that nobody has (any more)
    │   └── PermissionDenied          a known user, whose role or tenant does not allow it
    ├── StorageError                  exit code 2: where checkpoints and data live
    │   ├── ObjectNotFound            no such key
    │   ├── ObjectExists              a create-only write found another object under its key
    │   ├── StorageDenied             wrong keys, missing permission, no such bucket
    │   ├── StorageUnavailable        unreachable, or throttled beyond the retries
    │   ├── StorageFull               no space left
    │   └── CorruptObject             bytes that do not match their checksum or length
    ├── CheckpointError
    │   ├── CoverageError             slices that do not tile their tensor exactly once
    │   ├── FencedError               a newer epoch owns the job; this writer must stop
    │   └── IncompatibleCheckpoint    another model's or another job's state; names the first difference
    ├── TrainingError                 the numbers went wrong
    │   ├── NotFinite                 the loss or a gradient is NaN or infinite
    │   ├── LossSpike                 the loss jumped far above those before it
    │   └── ReplicaDrift              copies of the same state differ; names the rank that has the wrong one
    ├── StateError
    │   ├── IllegalTransition         a job cannot move between these states
    │   ├── StaleWrite                the row changed since it was read
    │   └── StoreUnavailable          the job store's database does not answer
    └── ClusterError                  Ray or the controller cannot be reached or started

All of them take one message and survive pickling.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class OrchestratorError(Exception):
    """Root of the tree. `exit_code` is what the command line exits with."""

    exit_code = 1


class UserError(OrchestratorError):
    exit_code = 2


class ConfigError(UserError):
    pass


class LayoutError(UserError):
    pass


class JobNotFound(UserError):
    pass


class DataError(UserError):
    pass


class WorkloadError(UserError):
    pass


class AuthenticationError(UserError):
    pass


class PermissionDenied(UserError):
    pass


class StorageError(OrchestratorError):
    exit_code = 2


class ObjectNotFound(StorageError):
    pass


class ObjectExists(StorageError):
    pass


class StorageDenied(StorageError):
    pass


class StorageUnavailable(StorageError):
    pass


class StorageFull(StorageError):
    pass


class CorruptObject(StorageError):
    pass


class CheckpointError(OrchestratorError):
    pass


class CoverageError(CheckpointError):
    pass


class FencedError(CheckpointError):
    pass


class IncompatibleCheckpoint(CheckpointError):
    exit_code = 2


class TrainingError(OrchestratorError):
    window: tuple[int, int] | None = None
    """Global positions of the samples that it came with; None: not known."""
    echo = False
    """Another rank's numbers are wrong, not this one's."""


class NotFinite(TrainingError):
    pass


class LossSpike(TrainingError):
    pass


class ReplicaDrift(TrainingError):
    pass


class StateError(OrchestratorError):
    pass


class IllegalTransition(StateError):
    pass


class StaleWrite(StateError):
    pass


class StoreUnavailable(StateError):
    pass


class ClusterError(OrchestratorError):
    pass


def nearest(name: str, allowed: Iterable[str]) -> str:
    """` Did you mean 'x'?` for the closest of `allowed`, or an empty string."""
    by_lower = {candidate.lower(): candidate for candidate in allowed}
    close = difflib.get_close_matches(name.lower(), list(by_lower), n=1, cutoff=0.5)
    return f" Did you mean '{by_lower[close[0]]}'?" if close else ""
