"""What differs between two checkpoints, tensor by tensor, in bounded memory. Torch-free."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum

import numpy as np

from orchestrator.checkpoints.manifest import Manifest, TensorSlice
from orchestrator.checkpoints.tensors import Name, Slices, num_bytes_of, portions, read_tensors
from orchestrator.storage import ObjectStore

_ELEMENTS = 1 << 20
"""So many numbers are compared at a time, as float64."""


class Change(Enum):
    """In the order of how much they say."""

    ADDED = "added"
    REMOVED = "removed"
    RETYPED = "other shape or dtype"
    DIFFERS = "differs"
    EQUAL = "equal"


@dataclass(frozen=True, kw_only=True)
class TensorDiff:
    role: str
    name: str
    change: Change
    before: str
    """`float32[7, 5]`; empty if it was not there."""
    after: str
    max_abs: float | None = None
    """Greatest absolute difference of two elements; None where it cannot be told."""
    relative_norm: float | None = None
    """|after - before| / |before|, Euclidean; infinite if only `before` is zero."""


def bytes_to_read(before: Manifest, after: Manifest) -> int:
    """Of all tensors that are in both and may differ."""
    one, other = before.tensors(), after.tensors()
    return sum(2 * num_bytes_of(one[name][0]) for name in _comparable(one, other))


def diff(
    store: ObjectStore, before: Manifest, after: Manifest, tell: Callable[[int], None] = lambda num_bytes: None
) -> Iterator[TensorDiff]:  # fmt: skip
    """First what is on one side only or of another type, then the rest in the order in which it is stored.

    `tell(bytes)` hears what was read. Two portions of `tensors.PORTION_BYTES`, or the largest tensor twice, are in memory at a time.
    Raises CorruptObject, StorageError.
    """
    one, other = before.tensors(), after.tensors()
    compared = _comparable(one, other)
    for role, name in sorted(one.keys() | other.keys()):
        key = role, name
        if key in compared:
            continue
        change, before_, after_ = _kind(one, other, key), _type(one.get(key)), _type(other.get(key))
        gap = 0.0 if change is Change.EQUAL else None
        yield TensorDiff(role=role, name=name, change=change, before=before_, after=after_, max_abs=gap, relative_norm=gap)
    for portion in portions({key: one[key] for key in compared}):
        left, right = read_tensors(store, before, one, portion), read_tensors(store, after, other, portion)
        for key in portion:
            yield _compared(key, one[key][0], left.pop(key), right.pop(key))
            tell(2 * num_bytes_of(one[key][0]))


def _comparable(one: Slices, other: Slices) -> set[Name]:
    """Of the same type in both, and not one and the same object in the store."""
    both = one.keys() & other.keys()
    return {key for key in both if _type(one[key]) == _type(other[key]) and _places(one[key]) != _places(other[key])}


def _places(slices: Sequence[TensorSlice]) -> list[tuple[str, int, object]]:
    return sorted((part.segment, part.offset, part.boxes) for part in slices)


def _kind(one: Slices, other: Slices, key: Name) -> Change:
    if key not in one:
        return Change.ADDED
    if key not in other:
        return Change.REMOVED
    return Change.EQUAL if _type(one[key]) == _type(other[key]) else Change.RETYPED


def _type(slices: Sequence[TensorSlice] | None) -> str:
    return f"{slices[0].dtype}{list(slices[0].global_shape)}" if slices else ""


def _compared(key: Name, part: TensorSlice, left: np.ndarray, right: np.ndarray) -> TensorDiff:
    role, name = key
    kind = _type([part])
    if np.array_equal(left.reshape(-1).view(np.uint8), right.reshape(-1).view(np.uint8)):
        return TensorDiff(role=role, name=name, change=Change.EQUAL, before=kind, after=kind, max_abs=0.0, relative_norm=0.0)
    max_abs, relative = _distance(left.reshape(-1), right.reshape(-1), part.dtype)
    return TensorDiff(role=role, name=name, change=Change.DIFFERS, before=kind, after=kind, max_abs=max_abs, relative_norm=relative)


def _distance(left: np.ndarray, right: np.ndarray, dtype: str) -> tuple[float | None, float | None]:
    if dtype.startswith(("float8", "complex")):
        return None, None
    greatest, squares, base = 0.0, 0.0, 0.0
    with np.errstate(invalid="ignore", over="ignore"):
        for start in range(0, left.size, _ELEMENTS):
            a, b = (_numbers(side[start : start + _ELEMENTS], dtype) for side in (left, right))
            gap = np.abs(b - a)
            greatest = float(np.maximum(greatest, gap.max()))  # keeps a NaN
            squares += float(np.dot(gap, gap))
            base += float(np.dot(a, a))
    if base == 0:
        return greatest, math.inf if squares > 0 else squares
    return greatest, math.sqrt(squares / base)


def _numbers(values: np.ndarray, dtype: str) -> np.ndarray:
    """As float64."""
    if dtype == "bfloat16":
        return (values.astype(np.uint32) << 16).view(np.float32).astype(np.float64)
    return values.astype(np.float64)
