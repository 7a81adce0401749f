"""Whole tensors out of a checkpoint as numpy arrays, a bounded portion at a time. Torch-free."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from orchestrator.checkpoints.manifest import BLOCK_BYTES, Manifest, Segment, TensorSlice, crc64
from orchestrator.checkpoints.plan import Box
from orchestrator.errors import CorruptObject
from orchestrator.storage import ObjectStore

THREADS = 8
PORTION_BYTES = 256 * 1024 * 1024

Name = tuple[str, str]
"""(role, fully qualified name)."""
Slices = dict[Name, list[TensorSlice]]

_BITS = {"bfloat16": "uint16", "float8_e4m3fn": "uint8", "float8_e5m2": "uint8"}
"""What numpy lacks is read as its bits."""


def dtype_of(name: str) -> np.dtype:
    """The array type that holds torch's type of that name."""
    return np.dtype(_BITS.get(name, name))


def num_bytes_of(part: TensorSlice) -> int:
    """Of the whole tensor that the slice is of."""
    return math.prod(part.global_shape) * dtype_of(part.dtype).itemsize


def portions(slices: Slices, limit_bytes: int = PORTION_BYTES) -> Iterator[list[Name]]:
    """The tensors in the order in which they are stored, as many together as fit into `limit_bytes`, at least one."""
    portion: list[Name] = []
    filled = 0
    for name in sorted(slices, key=lambda name: (slices[name][0].segment, slices[name][0].offset, name)):
        size = num_bytes_of(slices[name][0])
        if portion and filled + size > limit_bytes:
            yield portion
            portion, filled = [], 0
        portion.append(name)
        filled += size
    if portion:
        yield portion


def read_tensors(store: ObjectStore, manifest: Manifest, slices: Slices, names: Iterable[Name]) -> dict[Name, np.ndarray]:
    """Of `slices` (`manifest.tensors()`) those of `names`, whole. Raises CorruptObject naming object and block, StorageError."""
    arrays = {name: np.empty(slices[name][0].global_shape, dtype_of(slices[name][0].dtype)) for name in names}
    by_segment: dict[str, list[TensorSlice]] = defaultdict(list)
    for name in arrays:
        for part in slices[name]:
            by_segment[part.segment].append(part)
    segments = {segment.key: segment for segment in manifest.segments}
    with ThreadPoolExecutor(THREADS) as pool:
        for done in [pool.submit(_read_segment, store, segments[key], parts, arrays) for key, parts in by_segment.items()]:
            done.result()
    return arrays


def _read_segment(store: ObjectStore, segment: Segment, parts: list[TensorSlice], arrays: dict[Name, np.ndarray]) -> None:
    parts = sorted((part for part in parts if part.num_bytes), key=lambda part: part.offset)
    for first, last in _runs(parts):
        start, end = first * BLOCK_BYTES, min((last + 1) * BLOCK_BYTES, segment.num_bytes)
        run = memoryview(bytearray(end - start))
        store.read_into(segment.key, start, run)
        _check(segment, first, run)
        for part in parts:
            if start <= part.offset and part.offset + part.num_bytes <= end:
                _place(arrays[part.tensor], part, run[part.offset - start : part.offset - start + part.num_bytes])


def _runs(parts: list[TensorSlice]) -> list[tuple[int, int]]:
    """Needed blocks as [first, last] runs; no slice needs bytes of two runs. `parts` in the order of their offsets."""
    runs: list[tuple[int, int]] = []
    for part in parts:
        first, last = part.offset // BLOCK_BYTES, (part.offset + part.num_bytes - 1) // BLOCK_BYTES
        if runs and first <= runs[-1][1]:
            runs[-1] = (runs[-1][0], max(last, runs[-1][1]))
        else:
            runs.append((first, last))
    return runs


def _check(segment: Segment, first: int, run: memoryview) -> None:
    for number, start in enumerate(range(0, len(run), BLOCK_BYTES), first):
        found, expected = crc64(run[start : start + BLOCK_BYTES]), segment.block_crcs[number]
        if found != expected:
            raise CorruptObject(f"'{segment.key}' block {number} is damaged: CRC-64 {found:016x}, expected {expected:016x}.")


def _place(array: np.ndarray, part: TensorSlice, content: memoryview) -> None:
    whole, position = Box((0,) * array.ndim, array.shape), 0
    flat = np.frombuffer(content, array.dtype)
    for box in part.boxes:
        array[box.within(whole)] = flat[position : position + box.volume].reshape(box.shape)
        position += box.volume
