"""Packages in the store that no job has any more: a tombstone first and, after a grace, their end.

Who is about to use a package takes its tombstone away and then looks whether the package is there (`package.claim`). Who deletes one
deletes it and then looks whether the tombstone is there. So one of the two sees the other, whatever the order of their requests.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

from orchestrator.errors import CorruptObject, ObjectExists, ObjectNotFound
from orchestrator.paths import CODE, JOBS, code_key, code_tombstone
from orchestrator.storage import ObjectStore

GRACE_S = 7 * 86400.0


@dataclass(kw_only=True)
class Pruned:
    """Hashes and bytes of the packages of a store."""

    used: dict[str, int] = field(default_factory=dict)
    doomed: dict[str, int] = field(default_factory=dict)
    """No job has them; they stay until the grace is over."""
    deleted: dict[str, int] = field(default_factory=dict)


def prune_packages(
    store: ObjectStore, used: Collection[str], known_jobs: Collection[str], now: float, grace_s: float = GRACE_S, dry_run: bool = False
) -> Pruned:  # fmt: skip
    """`used`: what the jobs of this control plane have; `known_jobs`: their ids. What the other jobs of the store have stands there.

    `dry_run`: only say so. Raises StorageError.
    """
    used = {*used, *_of_others(store, known_jobs)}
    keys = {info.key: info.num_bytes for info in store.list(CODE)}
    found = Pruned()
    for key, num_bytes in keys.items():
        content_hash = key.removeprefix(CODE).partition(".")[0]
        if key != code_key(content_hash):
            continue
        since_s = _tombstone(store, content_hash) if code_tombstone(content_hash) in keys else None
        if content_hash in used:
            found.used[content_hash] = num_bytes
            if since_s is not None and not dry_run:
                store.delete(code_tombstone(content_hash))
        elif since_s is not None and now - since_s >= grace_s and (dry_run or _delete(store, content_hash)):
            found.deleted[content_hash] = num_bytes
        else:
            found.doomed[content_hash] = num_bytes
            if since_s is None and not dry_run:
                store.put(code_tombstone(content_hash), json.dumps({"time_s": now}).encode())
    return found


def _of_others(store: ObjectStore, known_jobs: Collection[str]) -> set[str]:
    """Packages of the runs that other control planes have begun in this store."""
    found = set()
    for info in store.list(JOBS):
        job_id, _, name = info.key.removeprefix(JOBS).partition("/")
        if name.startswith("spec-") and job_id not in known_jobs:
            found.add(_read(store, info.key)["workload"].get("package", ""))
    return found


def _tombstone(store: ObjectStore, content_hash: str) -> float | None:
    """Since when; None if it was taken away meanwhile."""
    try:
        return float(_read(store, code_tombstone(content_hash))["time_s"])
    except ObjectNotFound:
        return None


def _delete(store: ObjectStore, content_hash: str) -> bool:
    """False if somebody wants it just now: it is there again."""
    archive = store.get(code_key(content_hash))
    store.delete(code_key(content_hash))
    if _tombstone(store, content_hash) is not None:
        store.delete(code_tombstone(content_hash))
        return True
    with contextlib.suppress(ObjectExists):  # put there by who wants it
        store.create(code_key(content_hash), archive)
    return False


def _read(store: ObjectStore, key: str) -> dict[str, Any]:
    try:
        return dict(json.loads(store.get(key)))
    except ValueError as error:
        raise CorruptObject(f"'{key}' is damaged: {error}") from error
