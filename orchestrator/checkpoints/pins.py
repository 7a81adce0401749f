"""A pinned checkpoint stays, whatever the settings say."""

from __future__ import annotations

import json

from orchestrator.checkpoints.catalog import Entry
from orchestrator.errors import CheckpointError, ObjectNotFound
from orchestrator.paths import JobKeys
from orchestrator.storage import ObjectStore


def pin(store: ObjectStore, keys: JobKeys, entry: Entry, grace_s: float, now: float) -> None:
    """Pinning twice is no error. Raises CheckpointError if it is being deleted: its grace of `grace_s` is over at Unix time `now`."""
    ref = entry.ref
    if entry.tombstone_s is not None and entry.tombstone_s + grace_s <= now:
        raise CheckpointError(f"step {ref.step} of {ref.job_id} is being deleted: it can be pinned no more.")
    key = keys.pin(*entry.step)
    store.create(key, json.dumps({"commit": ref.key}).encode())
    store.delete(keys.tombstone(ref.prefix))
    try:
        store.get(ref.key)
    except ObjectNotFound:
        store.delete(key)
        raise CheckpointError(f"step {ref.step} of {ref.job_id} was deleted just now: it can be pinned no more.") from None


def unpin(store: ObjectStore, keys: JobKeys, entry: Entry) -> None:
    """No error if it is not pinned."""
    store.delete(keys.pin(*entry.step))
