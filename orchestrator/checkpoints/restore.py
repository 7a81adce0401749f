"""State comes back from the store into the tensors of any layout: what a rank wants is cut out of what the writers stored."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch

from orchestrator.checkpoints.manifest import BLOCK_BYTES, Manifest, Segment, TensorSlice, crc64
from orchestrator.checkpoints.pieces import StatePiece
from orchestrator.checkpoints.plan import Box
from orchestrator.errors import CorruptObject, IncompatibleCheckpoint
from orchestrator.storage import ObjectStore

THREADS = 8


@dataclass(frozen=True, kw_only=True)
class _Copy:
    """Elements of the box `common` go from a stored box to a wanted one."""

    source: Box
    source_offset: int
    """Byte offset of the stored box in its segment."""
    target: Box
    target_data: torch.Tensor
    """Flat part of the wanted tensor that holds the box `target`."""
    common: Box

    def byte_range(self) -> tuple[int, int]:
        """Bytes of the segment that are needed: whole rows of the stored box."""
        item = self.target_data.element_size()
        if not self.source.shape:
            return self.source_offset, self.source_offset + item
        row = math.prod(self.source.shape[1:]) * item
        first = self.common.offset[0] - self.source.offset[0]
        return self.source_offset + first * row, self.source_offset + (first + self.common.shape[0]) * row

    def run(self, rows: memoryview) -> None:
        """`rows`: the bytes of `byte_range()`."""
        held = torch.frombuffer(rows, dtype=self.target_data.dtype)
        target = self.target_data.view(self.target.shape)
        if not self.source.shape:
            target.copy_(held[0])
            return
        box = Box((self.common.offset[0], *self.source.offset[1:]), (self.common.shape[0], *self.source.shape[1:]))
        target[self.common.within(self.target)] = held.view(box.shape)[self.common.within(box)].to(target.device)


def restore(store: ObjectStore, manifest: Manifest, wanted: Sequence[StatePiece]) -> None:
    """Fill every wanted piece in place.

    A block's checksum is verified before a byte of it reaches a tensor. Raises CorruptObject naming object and block, and
    IncompatibleCheckpoint naming the first tensor that is missing or differs.
    """
    stored = manifest.tensors()
    by_segment: dict[str, list[_Copy]] = defaultdict(list)
    for piece in wanted:
        slices = stored.get((piece.role, piece.name), [])
        _check_same(piece, slices, manifest)
        for part in slices:
            by_segment[part.segment] += _copies(piece, part)
    segments = {segment.key: segment for segment in manifest.segments}
    with ThreadPoolExecutor(max_workers=THREADS) as pool:
        for done in [pool.submit(_read_segment, store, segments[key], copies) for key, copies in by_segment.items()]:
            done.result()


def export_tensors(store: ObjectStore, manifest: Manifest, role: str = "param") -> dict[str, np.ndarray]:
    """All tensors of a role, whole, by name. bfloat16, which numpy lacks, comes as float32."""
    pieces = []
    for (found, name), slices in manifest.tensors().items():
        if found == role:
            shape = slices[0].global_shape
            data = torch.empty(math.prod(shape), dtype=getattr(torch, slices[0].dtype))
            pieces.append(StatePiece(name=name, role=role, global_shape=shape, start=0, data=data))
    restore(store, manifest, pieces)
    return {piece.name: _as_numpy(piece.data.view(piece.global_shape)) for piece in pieces}


def _as_numpy(tensor: torch.Tensor) -> np.ndarray:
    return (tensor.float() if tensor.dtype is torch.bfloat16 else tensor).numpy()


def _check_same(piece: StatePiece, slices: list[TensorSlice], manifest: Manifest) -> None:
    where = f"the checkpoint of {manifest.job_id} at step {manifest.step}"
    if not slices:
        raise IncompatibleCheckpoint(f"{where} has no {piece.role} of {piece.name}; it was made by another model or optimizer.")
    held, dtype = slices[0], str(piece.data.dtype).removeprefix("torch.")
    if held.global_shape != tuple(piece.global_shape) or held.dtype != dtype:
        raise IncompatibleCheckpoint(
            f"{piece.role} of {piece.name} is {held.dtype}{list(held.global_shape)} in {where}, "
            f"but {dtype}{list(piece.global_shape)} in this model."
        )


def _copies(piece: StatePiece, part: TensorSlice) -> list[_Copy]:
    found = []
    item = piece.data.element_size()
    position = 0
    for target in piece.boxes:
        target_data = piece.data[position : position + target.volume]
        position += target.volume
        offset = part.offset
        for source in part.boxes:
            common = source.intersect(target)
            if common:
                copy = _Copy(source=source, source_offset=offset, target=target, target_data=target_data, common=common)
                found.append(copy)
            offset += source.volume * item
    return found


def _read_segment(store: ObjectStore, segment: Segment, copies: list[_Copy]) -> None:
    """Read the needed blocks in runs, verify each, copy."""
    for first, last in _runs(copies):
        start, end = first * BLOCK_BYTES, min((last + 1) * BLOCK_BYTES, segment.num_bytes)
        run = memoryview(bytearray(end - start))
        store.read_into(segment.key, start, run)
        _verify(segment, first, run)
        for copy in copies:
            low, high = copy.byte_range()
            if start <= low and high <= end:
                copy.run(run[low - start : high - start])


def _runs(copies: list[_Copy]) -> list[tuple[int, int]]:
    """Needed blocks as [first, last] runs; no copy needs bytes of two runs."""
    needed = sorted((low // BLOCK_BYTES, (high - 1) // BLOCK_BYTES) for low, high in (copy.byte_range() for copy in copies))
    runs: list[tuple[int, int]] = []
    for first, last in needed:
        if runs and first <= runs[-1][1] + 1:
            runs[-1] = (runs[-1][0], max(last, runs[-1][1]))
        else:
            runs.append((first, last))
    return runs


def _verify(segment: Segment, first: int, run: memoryview) -> None:
    for number, start in enumerate(range(0, len(run), BLOCK_BYTES), first):
        found, expected = crc64(run[start : start + BLOCK_BYTES]), segment.block_crcs[number]
        if found != expected:
            raise CorruptObject(f"'{segment.key}' block {number} is damaged: CRC-64 {found:016x}, expected {expected:016x}.")
