"""Checkpoints become valid here: journal first, then the commit, then what is old leaves the store."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import TypeVar

from orchestrator.checkpoints.catalog import Summaries
from orchestrator.checkpoints.commit import CommitLog, CommitRef, Epoch
from orchestrator.checkpoints.retention import apply_retention, policy_of
from orchestrator.errors import StorageError
from orchestrator.storage import ObjectStore
from orchestrator.supervision.attempt import SavedCheckpoint
from orchestrator.supervision.context import RunContext
from orchestrator.supervision.patience import persist
from orchestrator.tracking.journal import Journal

log = logging.getLogger("orchestrator.supervisor")
Result = TypeVar("Result")
Pause = Callable[[float], bool]


class Committer:
    """`pause(seconds)` waits and returns True if the wait was cut short by an order to stop at once."""

    def __init__(
        self, context: RunContext, store: ObjectStore, journal: Journal, pause: Pause, clock: Callable[[], float] = time.time
    ) -> None:  # fmt: skip
        self._keys = context.keys
        self._spec = context.spec
        self._world_size = context.world_size
        self._store = store
        self._journal = journal
        self._pause = pause
        self._clock = clock
        self._commits = CommitLog(store, self._keys)
        self.newest_step: int | None = None
        self._known: list[CommitRef] = []
        self._policy = policy_of(self._spec)
        self._read: Summaries = {}

    @property
    def best(self) -> CommitRef | None:
        """The commit whose step was evaluated best; None without `checkpoint.keep_best`."""
        return next(iter(self._policy.best(self._known)), None)

    def begin_epoch(self, owner: str) -> Epoch:
        """Raises StorageError when the store stays out of reach."""
        epoch = self.persist(lambda: self._commits.begin_epoch(owner))
        self._known = list(epoch.commits)
        self.newest_step = epoch.commits[0].step if epoch.commits else None
        return epoch

    def commit(self, epoch: int, checkpoint: SavedCheckpoint) -> CommitRef:
        """Raises FencedError, CoverageError, StorageError."""
        self.persist(lambda: self._ship(epoch))
        now = self._clock()  # once: a second try commits the same
        ref = self.persist(
            lambda: self._commits.commit(
                epoch=epoch, step=checkpoint.step, prefix=checkpoint.prefix, num_writers=self._world_size, world_size=self._world_size,
                zero_stage=self._spec.parallelism.zero_stage, job_scalars=checkpoint.job_scalars, time_s=now,
            )
        )  # fmt: skip
        self.newest_step = ref.step
        self._known.append(ref)
        self._retire()
        return ref

    def keep(self, name: str, content: bytes) -> bool:
        """An artifact for people. False if the store does not take it: nothing waits for it."""
        try:
            self._store.put(self._keys.artifact(name), content)
        except StorageError as error:
            log.warning("%s is not kept: %s", name, error)
            return False
        return True

    def mark_suspect(self, commit_key: str, message: str) -> None:
        self.persist(lambda: self._commits.mark_suspect(commit_key, message))

    def newest(self) -> int | None:
        """Step of the newest commit that counts, read from the store."""
        chain = self._known = self.persist(self._commits.chain)
        return chain[0].step if chain else None

    def persist(self, call: Callable[[], Result]) -> Result:
        """`call()`, again while the store cannot be reached. The last StorageUnavailable comes out; every other error at once."""
        return persist(call, self._pause)

    def _ship(self, epoch: int) -> None:
        """The rows up to a commit are in the store before it: who goes on from it has no hole in the curves."""
        self._commits.check_owner(epoch)
        self._journal.ship()

    def _retire(self) -> None:
        began = time.monotonic()
        try:
            deleted = apply_retention(self._store, self._keys, self._policy, self._clock, self._read)
        except StorageError as error:
            log.warning("old checkpoints stay for now: %s", error)
            return
        if deleted:
            log.info("%d old checkpoints deleted in %.2f s", len(deleted), time.monotonic() - began)
