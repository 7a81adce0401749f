"""A rank's part of a checkpoint goes to the store: packed segments, then the index that names them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch

from orchestrator.checkpoints.manifest import BLOCK_BYTES, Segment, TensorSlice, WriterIndex, crc64, encode
from orchestrator.checkpoints.pieces import StatePiece
from orchestrator.paths import index_key, segment_key
from orchestrator.storage import ObjectStore

SEGMENT_BYTES = 256 * 1024 * 1024
ALIGN_BYTES = 4096


def write_checkpoint(
    store: ObjectStore, prefix: str, writer: int, pieces: Iterable[StatePiece], scalars: Mapping[str, Any]
) -> WriterIndex:
    """Store `pieces` under `prefix`; returns when all of it is durable. Raises the store's StorageError."""
    segments: list[Segment] = []
    slices: list[TensorSlice] = []
    for batch in _batches(pieces):
        key = segment_key(prefix, writer, len(segments))
        content, placed = _pack(batch, key)
        store.put(key, memoryview(content))
        segments.append(Segment(key=key, num_bytes=len(content), block_crcs=tuple(block_crcs(content))))
        slices += placed
    index = WriterIndex(writer=writer, segments=tuple(segments), slices=tuple(slices), scalars=dict(scalars))
    store.put(index_key(prefix, writer), encode(index))
    return index


def block_crcs(content: bytes | bytearray) -> Iterator[int]:
    view = memoryview(content)
    for start in range(0, len(view), BLOCK_BYTES):
        yield crc64(view[start : start + BLOCK_BYTES])


def _batches(pieces: Iterable[StatePiece]) -> Iterator[list[StatePiece]]:
    """Portions of about a segment each; a piece larger than that is cut."""
    batch: list[StatePiece] = []
    filled = 0
    for piece in (part for whole in pieces for part in _cut(whole)):
        size = _num_bytes(piece)
        if batch and filled + size > SEGMENT_BYTES:
            yield batch
            batch, filled = [], 0
        batch.append(piece)
        filled += _aligned(size)
    if batch:
        yield batch


def _cut(piece: StatePiece) -> Iterator[StatePiece]:
    step = SEGMENT_BYTES // piece.data.element_size()
    for start in range(0, piece.data.numel(), step):
        yield replace(piece, start=piece.start + start, data=piece.data[start : start + step])


def _pack(batch: list[StatePiece], key: str) -> tuple[bytearray, list[TensorSlice]]:
    content = bytearray(sum(_aligned(_num_bytes(piece)) for piece in batch))
    target = torch.frombuffer(content, dtype=torch.uint8)
    slices, offset = [], 0
    for piece in batch:
        size = _num_bytes(piece)
        target[offset : offset + size] = piece.data.detach().contiguous().view(torch.uint8)
        slices.append(
            TensorSlice(
                name=piece.name,
                role=piece.role,
                dtype=str(piece.data.dtype).removeprefix("torch."),
                global_shape=tuple(piece.global_shape),
                boxes=piece.boxes,
                segment=key,
                offset=offset,
                num_bytes=size,
            )
        )
        offset += _aligned(size)
    return content, slices


def _num_bytes(piece: StatePiece) -> int:
    return int(piece.data.numel() * piece.data.element_size())


def _aligned(num_bytes: int) -> int:
    return -(-num_bytes // ALIGN_BYTES) * ALIGN_BYTES
