"""What a checkpoint consists of, as data: JSON under zstd, never a pickle."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import zstandard
from awscrt import checksums

from orchestrator.checkpoints.plan import Box, Shape, prove_coverage
from orchestrator.errors import CorruptObject, CoverageError

FORMAT_VERSION = 1
BLOCK_BYTES = 16 * 1024 * 1024
"""Each block of a segment has its own checksum; the last one may be shorter."""


def crc64(data: bytes | bytearray | memoryview, previous: int = 0) -> int:
    """CRC-64/NVME, at 32 GB/s per core."""
    return int(checksums.crc64nvme(data, previous))


@dataclass(frozen=True, kw_only=True)
class Segment:
    """One object of packed tensor bytes."""

    key: str
    num_bytes: int
    block_crcs: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class TensorSlice:
    """The part of one global tensor that one writer stored: its boxes' elements, row-major, one box after the other."""

    name: str
    role: str
    dtype: str
    global_shape: Shape
    boxes: tuple[Box, ...]
    segment: str
    offset: int
    num_bytes: int

    @property
    def tensor(self) -> tuple[str, str]:
        return self.role, self.name


@dataclass(frozen=True, kw_only=True)
class WriterIndex:
    """What one writer put into the store for one checkpoint."""

    writer: int
    segments: tuple[Segment, ...]
    slices: tuple[TensorSlice, ...]
    scalars: Mapping[str, Any] = field(default_factory=dict)
    """JSON values of this rank: random states."""


@dataclass(frozen=True, kw_only=True)
class Manifest:
    format_version: int = FORMAT_VERSION
    job_id: str
    step: int
    epoch: int
    prefix: str
    world_size: int
    zero_stage: int
    segments: tuple[Segment, ...]
    slices: tuple[TensorSlice, ...]
    rank_scalars: tuple[Mapping[str, Any], ...]
    """By writer."""
    job_scalars: Mapping[str, Any]
    """The same for all ranks: data position, step counters, data set, precision."""

    def tensors(self) -> dict[tuple[str, str], list[TensorSlice]]:
        """Slices by (role, name)."""
        found: dict[tuple[str, str], list[TensorSlice]] = defaultdict(list)
        for piece in self.slices:
            found[piece.tensor].append(piece)
        return dict(found)


def assemble(indexes: Iterable[WriterIndex], **header: Any) -> Manifest:
    """The manifest of all writers' indexes. Raises CoverageError unless every tensor is covered exactly once."""
    ordered = sorted(indexes, key=lambda index: index.writer)
    manifest = Manifest(
        segments=tuple(segment for index in ordered for segment in index.segments),
        slices=tuple(piece for index in ordered for piece in index.slices),
        rank_scalars=tuple(index.scalars for index in ordered),
        **header,
    )
    for (role, name), slices in manifest.tensors().items():
        first = slices[0]
        for piece in slices:
            if (piece.global_shape, piece.dtype) != (first.global_shape, first.dtype):
                raise CoverageError(f"{role} of {name}: writers disagree on its shape or dtype: {first} and {piece}")
        prove_coverage(f"{role} of {name}", first.global_shape, [box for piece in slices for box in piece.boxes])
    return manifest


def encode(value: WriterIndex | Manifest) -> bytes:
    text = json.dumps(value, default=vars, separators=(",", ":"), allow_nan=False)  # `asdict` would copy all of it
    return zstandard.ZstdCompressor(level=3, write_checksum=True).compress(text.encode())


def decode_index(data: bytes, key: str) -> WriterIndex:
    """Raises CorruptObject naming `key`."""
    values = _decode(data, key)
    try:
        return WriterIndex(
            writer=values["writer"], segments=_segments(values), slices=_slices(values), scalars=values["scalars"]
        )
    except (KeyError, TypeError) as error:
        raise CorruptObject(f"'{key}' is no index of a writer: {error!r}") from error


def decode_manifest(data: bytes, key: str) -> Manifest:
    """Raises CorruptObject naming `key`; also for a format of another version."""
    values = _decode(data, key)
    if values.get("format_version") != FORMAT_VERSION:
        raise CorruptObject(f"'{key}' has format version {values.get('format_version')}; this version reads {FORMAT_VERSION}.")
    try:
        rest = {**values, "segments": _segments(values), "slices": _slices(values), "rank_scalars": tuple(values["rank_scalars"])}
        return Manifest(**rest)
    except (KeyError, TypeError) as error:
        raise CorruptObject(f"'{key}' is no manifest: {error!r}") from error


def _decode(data: bytes, key: str) -> dict[str, Any]:
    try:
        values = json.loads(zstandard.ZstdDecompressor().decompress(data, max_output_size=1 << 31))
    except (zstandard.ZstdError, ValueError) as error:
        raise CorruptObject(f"'{key}' is damaged: {error}") from error
    if not isinstance(values, dict):
        raise CorruptObject(f"'{key}' is damaged: it holds no record")
    return values


def _segments(values: dict[str, Any]) -> tuple[Segment, ...]:
    return tuple(Segment(**{**item, "block_crcs": tuple(item["block_crcs"])}) for item in values["segments"])


def _slices(values: dict[str, Any]) -> tuple[TensorSlice, ...]:
    return tuple(
        TensorSlice(**{**item, "global_shape": tuple(item["global_shape"]), "boxes": tuple(map(_box, item["boxes"]))})
        for item in values["slices"]
    )


def _box(item: dict[str, list[int]]) -> Box:
    return Box(tuple(item["offset"]), tuple(item["shape"]))
