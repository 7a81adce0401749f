"""How often a commit was restored from without a step since: one that kills who reads it must not hold a job up for ever."""

from __future__ import annotations

import json

from orchestrator.errors import ObjectNotFound
from orchestrator.paths import JobKeys
from orchestrator.storage import ObjectStore

MAX_ATTEMPTS = 3


class RestoreAttempts:
    """Those of one commit. Written by one rank of the group that restores."""

    def __init__(self, store: ObjectStore, keys: JobKeys, commit_key: str) -> None:
        epoch, step = commit_key.rsplit("/", 1)[1].removesuffix(".json").split("-")
        self._store = store
        self._key = keys.restore_attempts(int(epoch), int(step))
        self._commit_key = commit_key

    def count(self) -> int:
        """Attempts noted since the last step. A damaged note says nothing of the commit: the count begins anew."""
        try:
            return int(json.loads(self._store.get(self._key))["attempts"])
        except (ObjectNotFound, ValueError, KeyError, TypeError):
            return 0

    def note(self) -> None:
        """One more begins."""
        self._store.put(self._key, json.dumps({"commit": self._commit_key, "attempts": self.count() + 1}).encode())

    def forget(self) -> None:
        """A step was made from what was restored, or who restored it was ended from outside."""
        self._store.delete(self._key)
