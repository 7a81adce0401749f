"""A slab: host memory under a name, in which a rank leaves its state for the uploader. Torch-free.

A file in shared memory of one header page and the packed bytes, reused from save to save; beside it `<slab>.json` says what lies where.
The state outlives the process that wrote it, so it is also what a rank that starts again on this node reads first (`near.py`).
"""

from __future__ import annotations

import dataclasses
import enum
import errno
import json
import math
import mmap
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from orchestrator.checkpoints.checksums import Crcs
from orchestrator.checkpoints.plan import Box, Shape, boxes_of

HEADER_BYTES = 4096
ALIGN_BYTES = 4096
SEGMENT_BYTES = 64 * 1024 * 1024
"""Of an object at most: what is sent and retried as one."""
CONSTANT = "constant"
"""Slabs with this suffix hold what never changes in a run; they are written once."""


class SlabState(enum.IntEnum):
    FREE = 0
    STAGED = 1  # to be uploaded; whoever uploads it makes it free


@dataclass(frozen=True, kw_only=True)
class Row:
    """A piece of state in a slab: the flat interval [start, start + count) of a tensor, or of a block of it."""

    name: str
    role: str
    dtype: str
    global_shape: Shape
    start: int
    count: int
    item_bytes: int
    block: Box | None = None

    @property
    def num_bytes(self) -> int:
        return self.count * self.item_bytes

    @property
    def boxes(self) -> tuple[Box, ...]:
        end = self.start + self.count
        if self.block is None:
            return boxes_of(self.global_shape, self.start, end)
        return tuple(box.moved(self.block.offset) for box in boxes_of(self.block.shape, self.start, end))

    def parts(self) -> Iterator[Row]:
        """Itself, or intervals of it that fit a segment each."""
        step = max(1, SEGMENT_BYTES // self.item_bytes)
        for low in range(0, self.count, step):
            yield dataclasses.replace(self, start=self.start + low, count=min(step, self.count - low))


@dataclass(frozen=True)
class Portion:
    """The bytes of one segment: [start, start + num_bytes) of the packed bytes, and the offsets of its rows from `start`."""

    start: int
    num_bytes: int
    rows: tuple[tuple[int, Row], ...]


def arrange(rows: Iterable[Row]) -> list[Portion]:
    """Rows one after the other, each aligned, in portions of at most a segment. The rows fit a segment each (`Row.parts`)."""
    found: list[Portion] = []
    start, filled, placed = 0, 0, list[tuple[int, Row]]()
    for row in rows:
        if placed and filled + row.num_bytes > SEGMENT_BYTES:
            found.append(Portion(start, filled, tuple(placed)))
            start, filled, placed = start + filled, 0, []
        placed.append((filled, row))
        filled += -(-row.num_bytes // ALIGN_BYTES) * ALIGN_BYTES
    if placed:
        found.append(Portion(start, filled, tuple(placed)))
    return found


def size_of(rows: Sequence[Row]) -> int:
    """Packed bytes."""
    portions = arrange(rows)
    return portions[-1].start + portions[-1].num_bytes if portions else 0


@dataclass(frozen=True, kw_only=True)
class Staged:
    """What one rank has staged: the content of `<slab>.json`."""

    job_id: str
    epoch: int
    step: int
    prefix: str
    """Of the checkpoint's keys; of constant state empty until this epoch has put it into the store."""
    writer: int
    rows: tuple[Row, ...]
    first_segment: int = 0
    """Number of its first segment under `prefix`."""
    crcs: Crcs = ()
    """Taken as the bytes were copied; empty: whoever uploads takes them."""
    scalars: Mapping[str, Any] = field(default_factory=dict)
    """JSON values of this rank: random states."""
    constant_slab: str = ""
    """Path of the slab with the state that never changes; empty: there is none."""


class Slab:
    """Whoever holds one maps its memory. `create` for the rank, `open` for everybody else."""

    def __init__(self, path: Path, memory: mmap.mmap) -> None:
        self.path = path
        self._memory = memory

    @classmethod
    def create(cls, path: Path, num_bytes: int) -> Slab:
        """With room for `num_bytes` of packed bytes; the one that is there, if it has it. Raises OSError if the memory is not there."""
        wanted = HEADER_BYTES + max(num_bytes, 1)
        if path.exists() and path.stat().st_size < wanted:
            path.unlink()  # who reads the old one keeps it
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            os.posix_fallocate(descriptor, 0, max(wanted, os.fstat(descriptor).st_size))  # now, not by a signal in the middle of a copy
            return cls(path, mmap.mmap(descriptor, 0, flags=mmap.MAP_SHARED | mmap.MAP_POPULATE))
        except OSError:
            path.unlink(missing_ok=True)
            raise
        finally:
            os.close(descriptor)

    @classmethod
    def open(cls, path: Path) -> Slab:
        """Raises FileNotFoundError, also for one that is being made, or whose maker was killed before it was there."""
        descriptor = os.open(path, os.O_RDWR)
        try:
            if os.fstat(descriptor).st_size <= HEADER_BYTES:
                raise FileNotFoundError(errno.ENOENT, "it is not whole yet", str(path))
            return cls(path, mmap.mmap(descriptor, 0))
        finally:
            os.close(descriptor)

    @property
    def state(self) -> SlabState:
        return SlabState(self._memory[0])

    @state.setter
    def state(self, value: SlabState) -> None:
        self._memory[0] = value

    @property
    def content(self) -> memoryview:
        """The packed bytes, writable."""
        return memoryview(self._memory)[HEADER_BYTES:]

    @property
    def capacity(self) -> int:
        return len(self._memory) - HEADER_BYTES

    def describe(self, staged: Staged) -> None:
        """Say what lies in it: whole or not at all."""
        unfinished = _table(self.path).with_suffix(".unfinished")
        unfinished.write_text(json.dumps(_to_json(staged), separators=(",", ":")))
        unfinished.replace(_table(self.path))

    def forget(self) -> None:
        """It is about to be written: nothing is said of it."""
        _table(self.path).unlink(missing_ok=True)


def read_staged(slab: Path) -> Staged:
    """What lies in a slab. Raises FileNotFoundError if nothing is said of it."""
    values = json.loads(_table(slab).read_text())
    return Staged(**{**values, "rows": tuple(map(_row, values["rows"])), "crcs": tuple(map(tuple, values["crcs"]))})


def slab_path(folder: Path, stem: str, number: int | str) -> Path:
    return folder / f"{stem}-{number}.slab"


def is_constant(slab: Path) -> bool:
    return slab.stem.endswith(f"-{CONSTANT}")


def slabs_of(folder: Path, stem: str) -> list[Path]:
    """All whose names begin with `stem`."""
    return sorted(folder.glob(f"{stem}-*.slab"))


def remove_slabs(folder: Path, stem: str, until_s: float = math.inf) -> None:
    """Those that were not made or changed after `until_s`, in seconds since 1970."""
    for path in slabs_of(folder, stem):
        with suppress(FileNotFoundError):  # another one removes them too
            if path.stat().st_ctime <= until_s:
                _table(path).unlink(missing_ok=True)
                path.unlink()


def _table(slab: Path) -> Path:
    return slab.with_suffix(".json")


def _to_json(staged: Staged) -> dict[str, Any]:
    """`dataclasses.asdict` copies deeply, which takes long for thousands of rows."""
    values = {item.name: getattr(staged, item.name) for item in dataclasses.fields(staged)}
    return {**values, "rows": [_row_to_json(row) for row in staged.rows]}


def _row_to_json(row: Row) -> Sequence[Any]:
    block = row.block and [row.block.offset, row.block.shape]
    return [row.name, row.role, row.dtype, row.global_shape, row.start, row.count, row.item_bytes, block]


def _row(values: Sequence[Any]) -> Row:
    name, role, dtype, shape, start, count, item_bytes, block = values
    return Row(
        name=name, role=role, dtype=dtype, global_shape=tuple(shape), start=start, count=count, item_bytes=item_bytes,
        block=Box(tuple(block[0]), tuple(block[1])) if block else None,
    )  # fmt: skip
