"""Object stores: where checkpoints, data sets, journals and logs live."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import unquote, urlparse

from ulid import ULID

from orchestrator.errors import ConfigError, ObjectExists, StorageError
from orchestrator.spec import StorageSpec
from orchestrator.storage.directory import DirectoryStore
from orchestrator.storage.faulty import CrashPoint, Fault, FaultyStore
from orchestrator.storage.interface import HasUploads, ObjectInfo, ObjectStore, UnfinishedUpload
from orchestrator.storage.memory import MemoryStore

__all__ = [
    "CrashPoint",
    "DirectoryStore",
    "Fault",
    "FaultyStore",
    "HasUploads",
    "MemoryStore",
    "ObjectInfo",
    "ObjectStore",
    "UnfinishedUpload",
    "check_store",
    "open_store",
]


def open_store(spec: StorageSpec, environ: Mapping[str, str] | None = None) -> ObjectStore:
    """The store that `spec.url` names. S3 keys come from `environ` (the process's own without), else from boto3's usual places."""
    parts = urlparse(spec.url)
    if parts.scheme == "file" and parts.path:
        return DirectoryStore(Path(unquote(parts.path)))
    if parts.scheme == "s3" and parts.netloc:
        from orchestrator.storage.s3 import S3Store  # boto3 takes 0.3 s to import

        return S3Store(spec, environ if environ is not None else os.environ)
    raise ConfigError(f"storage.url={spec.url} is no store: allowed are s3://bucket/prefix and file:///absolute/folder.")


def check_store(store: ObjectStore) -> None:
    """Write, read back, create twice, delete: raises the StorageError that a job would meet later. Leaves nothing behind.

    A store that accepts a second create would let two writers commit the same step, so it is refused.
    """
    key = f"probe/{ULID()}"
    content = key.encode()
    store.create(key, content)
    try:
        if store.get(key) != content:
            raise StorageError(f"{store.url} returned other bytes than were written under '{key}'.")
        if _creates_again(store, key, content + b"-second"):
            raise StorageError(
                f"{store.url} accepted a second create-only write of one key: it ignores If-None-Match: *, so two writers could commit the "
                "same step. Needed is a store with conditional writes (AWS S3, Ceph, SeaweedFS), or a folder: storage.url=file:///folder."
            )
    finally:
        store.delete(key)


def _creates_again(store: ObjectStore, key: str, content: bytes) -> bool:
    try:
        store.create(key, content)
    except ObjectExists:
        return False
    return True
