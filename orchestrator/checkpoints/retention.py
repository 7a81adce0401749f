"""Old checkpoints leave the store: first the commit, so that nobody begins to read, then the bytes."""

from __future__ import annotations

from orchestrator.checkpoints.commit import CommitLog, CommitRef
from orchestrator.paths import JobKeys
from orchestrator.storage import ObjectStore


def apply_retention(store: ObjectStore, keys: JobKeys, keep_last: int) -> list[str]:
    """Delete all but the newest `keep_last` commits (0: keep all) and what unfinished saves older than those left behind.

    Called by the job's owner right after a commit, when no rank reads. Killed in between, the next call finishes. Returns the
    deleted checkpoint prefixes.
    """
    if keep_last == 0:
        return []
    chain = CommitLog(store, keys).chain()
    kept, retired = chain[:keep_last], chain[keep_last:]
    if not kept:
        return []
    for ref in retired:
        store.delete(ref.key)
    return _delete_before(store, keys, kept)


def _delete_before(store: ObjectStore, keys: JobKeys, kept: list[CommitRef]) -> list[str]:
    prefixes = {ref.prefix for ref in kept}
    oldest = min(ref.step for ref in kept)
    deleted = set()
    for info in list(store.list(keys.checkpoints)):
        name = info.key.removeprefix(keys.checkpoints).split("/", 1)[0]
        prefix = f"{keys.checkpoints}{name}/"
        if prefix not in prefixes and int(name.split("-", 1)[0]) < oldest:
            store.delete(info.key)
            deleted.add(prefix)
    return sorted(deleted)
