"""A rank's part of a checkpoint goes to the store at once: staged and uploaded in one call, as a rank and its uploader do it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch

from orchestrator.checkpoints.manifest import WriterIndex
from orchestrator.checkpoints.pieces import StatePiece
from orchestrator.checkpoints.slab import size_of
from orchestrator.checkpoints.stage import pack_into, rows_of
from orchestrator.checkpoints.upload import store_index, store_rows
from orchestrator.storage import ObjectStore

THREADS = 4


def write_checkpoint(
    store: ObjectStore, prefix: str, writer: int, pieces: Iterable[StatePiece], scalars: Mapping[str, Any], threads: int = THREADS
) -> WriterIndex:
    """Store `pieces` under `prefix`; returns when all of it is durable. Raises the store's StorageError."""
    pieces = list(pieces)
    rows = rows_of(pieces)
    content = torch.empty(size_of(rows), dtype=torch.uint8)
    crcs = pack_into(content, pieces, rows)
    with ThreadPoolExecutor(threads) as pool:
        stored = store_rows(store, prefix, writer, rows, memoryview(content.numpy()), pool, crcs=crcs)
    return store_index(store, prefix, writer, stored, scalars)
