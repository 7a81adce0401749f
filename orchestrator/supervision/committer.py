"""Checkpoints become valid here: journal first, then the commit, then what is old leaves the store, which no commit waits for."""

from __future__ import annotations

import logging
import threading
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

CLOSE_LIMIT_S = 10.0
"""For so long the end of a run waits for deletions; what is left then, the next pass finishes."""

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
        self._retention = Beside("retention", self._retire)

    @property
    def best(self) -> CommitRef | None:
        """The commit whose step was evaluated best; None without `checkpoint.keep_best`."""
        return next(iter(self._policy.best(self._known)), None)

    def begin_epoch(self, owner: str) -> Epoch:
        """Waits until nothing is being deleted: what the epoch may go on from stays until its first commit.

        Raises StorageError when the store stays out of reach.
        """
        self._retention.finish()
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
        self._retention.ask()
        return ref

    def close(self, limit_s: float = CLOSE_LIMIT_S) -> None:
        """What is being deleted is gone, unless it takes longer than `limit_s`."""
        if not self._retention.finish(limit_s):
            log.warning("old checkpoints are still being deleted after %.0f s; what is left goes with the next commit or `gc`", limit_s)

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


class Beside:
    """`work()` on a thread of its own whenever it was asked for; asked again meanwhile, it runs once more. What goes wrong is raised on
    the thread that asks next, or that waits for the end."""

    def __init__(self, name: str, work: Callable[[], None]) -> None:
        self._name = name
        self._work = work
        self._lock = threading.Lock()
        self._asked = False
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def ask(self) -> None:
        with self._lock:
            self._raise()
            self._asked = True
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name=self._name, daemon=True)
                self._thread.start()

    def finish(self, limit_s: float | None = None) -> bool:
        """Whether all that was asked for is done, in `limit_s` seconds if given."""
        thread = self._thread
        if thread is not None:
            thread.join(limit_s)
        with self._lock:
            self._raise()
            return self._thread is None

    def _run(self) -> None:
        while self._goes_on():
            try:
                self._work()
            except BaseException as error:  # noqa: BLE001 - raised on the thread that asks or waits
                self._error = error

    def _goes_on(self) -> bool:
        with self._lock:
            goes_on, self._asked = self._asked and self._error is None, False
            if not goes_on:
                self._thread = None
            return goes_on

    def _raise(self) -> None:
        if self._error is not None:
            error, self._error = self._error, None
            raise error
