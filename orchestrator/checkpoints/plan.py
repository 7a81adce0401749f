"""Geometry of slices: flat intervals and boxes, the coverage proof. Pure.

A row-major flat interval of an n-dimensional tensor is at most 2n - 1 boxes. With boxes as the unit, ZeRO's flat partitions and
the slices of tensor parallelism are one geometry.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from orchestrator.errors import CoverageError

Shape = tuple[int, ...]


@dataclass(frozen=True, order=True)
class Box:
    """A rectangular part of a tensor: `offset` and `shape`, one number per dimension."""

    offset: Shape
    shape: Shape

    @property
    def volume(self) -> int:
        return math.prod(self.shape)

    def intersect(self, other: Box) -> Box | None:
        low = tuple(max(a, b) for a, b in zip(self.offset, other.offset, strict=True))
        ends = zip(self.offset, self.shape, other.offset, other.shape, strict=True)
        high = tuple(min(a + m, b + n) for a, m, b, n in ends)
        shape = tuple(h - w for w, h in zip(low, high, strict=True))
        return Box(low, shape) if all(n > 0 for n in shape) else None

    def moved(self, by: Shape) -> Box:
        return Box(tuple(a + b for a, b in zip(self.offset, by, strict=True)), self.shape)

    def within(self, other: Box) -> tuple[slice, ...]:
        """This box as an index into an array that holds `other`."""
        starts = (a - b for a, b in zip(self.offset, other.offset, strict=True))
        return tuple(slice(a, a + n) for a, n in zip(starts, self.shape, strict=True))


def boxes_of(shape: Shape, start: int, end: int) -> tuple[Box, ...]:
    """The flat interval [start, end) of a row-major tensor as boxes, in flat order. A scalar has shape ()."""
    if start >= end:
        return ()
    if not shape:
        return (Box((), ()),)
    row = math.prod(shape[1:])
    first, last = -(-start // row), end // row
    if first > last:  # inside one row
        return _lift(start // row, boxes_of(shape[1:], start % row, end - start // row * row))
    found: list[Box] = []
    if start % row:
        found += _lift(first - 1, boxes_of(shape[1:], start % row, row))
    if last > first:
        found.append(Box((first, *(0 for _ in shape[1:])), (last - first, *shape[1:])))
    if end % row:
        found += _lift(last, boxes_of(shape[1:], 0, end % row))
    return tuple(found)


def _lift(index: int, boxes: Iterable[Box]) -> tuple[Box, ...]:
    return tuple(Box((index, *box.offset), (1, *box.shape)) for box in boxes)


def prove_coverage(tensor: str, shape: Shape, boxes: Sequence[Box]) -> None:
    """Raises CoverageError unless `boxes` tile the whole of `shape` exactly once. O(n log n) for slices that follow each other."""
    whole = Box(tuple(0 for _ in shape), shape)
    for box in boxes:
        if len(box.offset) != len(shape) or (box.volume and box.intersect(whole) != box):
            raise CoverageError(f"{tensor}: the slice {box} does not lie inside the shape {shape}")
    pair = _overlap(boxes)
    if pair:
        raise CoverageError(f"{tensor}: the slices {pair[0]} and {pair[1]} overlap")
    missing = whole.volume - sum(box.volume for box in boxes)
    if missing:
        raise CoverageError(f"{tensor}: {missing} of {whole.volume} elements are in no slice")


def _overlap(boxes: Sequence[Box]) -> tuple[Box, Box] | None:
    """Two boxes that share an element, found by a sweep along the first dimension."""
    active: list[Box] = []
    if boxes and not boxes[0].shape:
        return (boxes[0], boxes[1]) if len(boxes) > 1 else None
    for box in sorted(boxes):
        active = [other for other in active if other.offset[0] + other.shape[0] > box.offset[0]]
        for other in active:
            if box.intersect(other):
                return other, box
        active.append(box)
    return None
