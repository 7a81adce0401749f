"""Staged state goes to the store: packed segments with their checksums, then the index that names them. Torch-free."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Any

from orchestrator.checkpoints.checksums import BlockChecksums, Crcs
from orchestrator.checkpoints.manifest import Segment, TensorSlice, WriterIndex, encode
from orchestrator.checkpoints.slab import Portion, Row, arrange
from orchestrator.paths import index_key, segment_key
from orchestrator.storage import ObjectStore

Content = bytes | bytearray | memoryview


@dataclass(frozen=True)
class Stored:
    """Rows that are in the store: their segments, and where in them each lies."""

    segments: tuple[Segment, ...] = ()
    slices: tuple[TensorSlice, ...] = ()

    def __add__(self, other: Stored) -> Stored:
        return Stored(self.segments + other.segments, self.slices + other.slices)


def store_rows(
    store: ObjectStore, prefix: str, writer: int, rows: Sequence[Row], content: Content, pool: Executor, *, crcs: Crcs = (),
    first_segment: int = 0, before_each: Callable[[int], None] = lambda num_bytes: None,
) -> Stored:  # fmt: skip
    """Put the packed `rows` (`slab.arrange`) of `content` under `prefix`; returns when all of it is durable. Raises StorageError.

    `crcs`: if they were taken already. `before_each` is told the bytes of every segment before it is sent, on the thread that sends it.
    """
    view = memoryview(content)

    def send(portion: Portion, key: str, held: Sequence[int] | None) -> Segment:
        segment, data = _segment(portion, key, view, held)
        before_each(len(data))
        store.put(key, data)
        return segment

    portions = _named(prefix, writer, rows, first_segment)
    sent = [pool.submit(send, portion, key, held) for (portion, key), held in zip(portions, _of_each(portions, crcs), strict=True)]
    try:
        segments = tuple(one.result() for one in sent)
    except BaseException:
        for one in sent:
            one.cancel()
        raise
    return Stored(segments, _slices(portions))


def named_rows(prefix: str, writer: int, rows: Sequence[Row], content: Content, first_segment: int, crcs: Crcs = ()) -> Stored:
    """The same without sending anything: it is in the store already."""
    portions, view = _named(prefix, writer, rows, first_segment), memoryview(content)
    segments = [_segment(portion, key, view, held)[0] for (portion, key), held in zip(portions, _of_each(portions, crcs), strict=True)]
    return Stored(tuple(segments), _slices(portions))


def store_index(store: ObjectStore, prefix: str, writer: int, stored: Stored, scalars: Mapping[str, Any]) -> WriterIndex:
    """The writer's part is whole with it."""
    index = WriterIndex(writer=writer, segments=stored.segments, slices=stored.slices, scalars=dict(scalars))
    store.put(index_key(prefix, writer), encode(index))
    return index


def _named(prefix: str, writer: int, rows: Sequence[Row], first_segment: int) -> list[tuple[Portion, str]]:
    return [(portion, segment_key(prefix, writer, number)) for number, portion in enumerate(arrange(rows), first_segment)]


def _of_each(portions: Sequence[tuple[Portion, str]], crcs: Crcs) -> Sequence[Sequence[int] | None]:
    return crcs or [None] * len(portions)


def _segment(portion: Portion, key: str, view: memoryview, held: Sequence[int] | None) -> tuple[Segment, memoryview]:
    data = view[portion.start : portion.start + portion.num_bytes]
    return Segment(key=key, num_bytes=len(data), block_crcs=BlockChecksums(data).all() if held is None else tuple(held)), data


def _slices(portions: Sequence[tuple[Portion, str]]) -> tuple[TensorSlice, ...]:
    return tuple(_slice(row, key, offset) for portion, key in portions for offset, row in portion.rows)


def _slice(row: Row, key: str, offset: int) -> TensorSlice:
    return TensorSlice(
        name=row.name, role=row.role, dtype=row.dtype, global_shape=row.global_shape, boxes=row.boxes, segment=key, offset=offset,
        num_bytes=row.num_bytes,
    )  # fmt: skip
