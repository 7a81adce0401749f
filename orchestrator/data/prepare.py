"""Make a data set once, and find it again.

The order of the writes is what makes a kill harmless: shards and files, then the index, then the pointer from the source's
fingerprint to the content. A data set without an index does not exist; a killed preparation is simply done again, over the same keys.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

from orchestrator.data.shards import SHARD_BYTES, Index, ShardSink
from orchestrator.errors import DataError, ObjectExists, ObjectNotFound
from orchestrator.paths import DatasetKeys
from orchestrator.spec import JobSpec, to_dict
from orchestrator.storage import ObjectStore
from orchestrator.workload import Workload

Say = Callable[[str], None]


def ensure_dataset(store: ObjectStore, workload: Workload, spec: JobSpec, say: Say, shard_bytes: int = SHARD_BYTES) -> str:
    """The content hash of the workload's data set in `store`, prepared now if this source never was.

    `say` gets a few words whenever something that takes time begins. Raises DataError, StorageError, and what the workload raises.
    """
    keys = DatasetKeys(spec.data.name)
    fingerprint = workload.source_fingerprint()
    known = _lookup(store, keys, fingerprint)
    if known is not None:
        return known
    say(f"preparing data set '{spec.data.name}' (once)")
    started = time.monotonic()
    sink = ShardSink(say, shard_bytes)
    try:
        workload.prepare(sink)
        index = sink.index(provenance=_provenance(spec, fingerprint))
        _upload(store, keys, sink, index, say)
    finally:
        sink.close()
    chosen = _point(store, keys, fingerprint, index.content_hash)
    counts = ", ".join(f"{index.num_samples(split):,} {split}" for split in index.splits)
    say(f"data set '{spec.data.name}' is ready: {counts} samples, {time.monotonic() - started:.0f} s")
    return chosen


def _lookup(store: ObjectStore, keys: DatasetKeys, fingerprint: str) -> str | None:
    """The content that was made of this source before, if it is still there."""
    key = keys.by_source(fingerprint)
    try:
        pointer = store.get(key)
    except ObjectNotFound:
        return None
    content_hash = _parse_pointer(pointer, key)
    return content_hash if _exists(store, keys.index(content_hash)) else None


def _parse_pointer(pointer: bytes, key: str) -> str:
    try:
        return str(json.loads(pointer)["content_hash"])
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{key} is damaged: expected a content hash, found {pointer[:80]!r}. Delete it to prepare again.") from error


def _upload(store: ObjectStore, keys: DatasetKeys, sink: ShardSink, index: Index, say: Say) -> None:
    if _exists(store, keys.index(index.content_hash)):
        return  # another recipe or another preparer made the same content
    parts = [*index.files, *(part for parts in index.splits.values() for part in parts)]
    say(f"storing {sum(part.num_bytes for part in parts) / 1e6:.1f} MB in {len(parts)} objects")
    for name, content in sink.objects(index):
        store.put(keys.file(index.content_hash, name), content)
    store.put(keys.index(index.content_hash), index.to_bytes())


def _point(store: ObjectStore, keys: DatasetKeys, fingerprint: str, content_hash: str) -> str:
    """Point the source at its content. If another preparer was first with another content, theirs is what everybody uses."""
    key, pointer = keys.by_source(fingerprint), json.dumps({"content_hash": content_hash}).encode()
    try:
        store.create(key, pointer)
    except ObjectExists:
        theirs = _lookup(store, keys, fingerprint)
        if theirs is not None:
            return theirs
        store.put(key, pointer)  # it pointed at a content that was deleted
    return content_hash


def _exists(store: ObjectStore, key: str) -> bool:
    try:
        store.get(key, 0, 1)
    except ObjectNotFound:
        return False
    return True


def _provenance(spec: JobSpec, fingerprint: str) -> dict[str, Any]:
    return {
        "recipe": to_dict(spec.data),
        "workload": spec.workload.entrypoint,
        "source_fingerprint": fingerprint,
        "numpy": version("numpy"),
        "prepared_at_s": int(time.time()),
    }
