"""A reader's place in the output of a job, and the text that any later reader goes on from."""

from __future__ import annotations

import base64
import binascii
import json
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from orchestrator.errors import UserError

MAX_MOVED = 8
"""Streams that are written one by one before all are written anew."""
_LONGEST_BYTES = 1 << 20


class Stream(NamedTuple):
    epoch: int
    rank: int


@dataclass(frozen=True)
class _Written:
    """The place of all streams at some time, as text once it is asked for."""

    job_id: str
    streams: Mapping[Stream, int]

    @cached_property
    def text(self) -> str:
        return encode(self.job_id, self.streams)


@dataclass(frozen=True)
class Mark:
    """Where a reader was when it began to read on in one stream. Many lines come after it, each with an offset that costs little."""

    _written: _Written
    _moved: Mapping[Stream, int]
    """Since then, less than all."""

    def offset(self, stream: Stream, end: int) -> str:
        """Of what comes after the first `end` bytes of that stream."""
        moved = {**self._moved, stream: end}
        return "".join(f"{epoch}-{rank}-{count}." for (epoch, rank), count in moved.items()) + self._written.text


class Place:
    """How many bytes of each stream a reader has had. Raises UserError for a text that is no offset of this job's."""

    def __init__(self, job_id: str, after: str = "") -> None:
        self._job_id = job_id
        self._streams = decode(job_id, after) if after else {}
        self._written = _Written(job_id, dict(self._streams))
        self._moved: dict[Stream, int] = {}

    def __iter__(self) -> Iterator[Stream]:
        return iter(self._streams)

    def __getitem__(self, stream: Stream) -> int:
        return self._streams.get(stream, 0)

    def __setitem__(self, stream: Stream, num_bytes: int) -> None:
        if len(self._moved) >= MAX_MOVED and stream not in self._moved:
            self._written, self._moved = _Written(self._job_id, dict(self._streams)), {}
        self._streams[stream] = self._moved[stream] = num_bytes

    @property
    def offset(self) -> str:
        return encode(self._job_id, self._streams)

    def mark(self) -> Mark:
        return Mark(self._written, dict(self._moved))


def encode(job_id: str, place: Mapping[Stream, int]) -> str:
    """Its length grows with the streams that have been read; letters, digits, `-` and `_` only. `EPOCH-RANK-COUNT.` before it: of that
    stream so many bytes, whatever it says."""
    by_epoch: dict[int, dict[int, int]] = {}
    for stream, count in sorted(place.items()):
        by_epoch.setdefault(stream.epoch, {})[stream.rank] = count
    text = json.dumps([job_id, by_epoch], separators=(",", ":"))
    return base64.urlsafe_b64encode(zlib.compress(text.encode(), 1)).decode().rstrip("=")


def decode(job_id: str, offset: str) -> dict[Stream, int]:
    try:
        *moved, written = offset.split(".")
        packed = base64.b64decode(written + "=" * (-len(written) % 4), altchars=b"-_", validate=True)
        unpacker = zlib.decompressobj()
        of_job, by_epoch = json.loads(unpacker.decompress(packed, _LONGEST_BYTES))
        found = {Stream(int(epoch), int(rank)): int(count) for epoch, ranks in by_epoch.items() for rank, count in ranks.items()}
        for epoch, rank, count in (part.split("-") for part in moved):
            found[Stream(int(epoch), int(rank))] = int(count)
        if min(found.values(), default=0) < 0 or not unpacker.eof:
            raise ValueError("a count is negative, or the end is cut off")
    except (binascii.Error, zlib.error, ValueError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise UserError(f"offset {_short(offset)} is not possible: allowed is the offset of a line of {job_id}'s logs.") from error
    if of_job != job_id:
        raise UserError(f"offset {_short(offset)} is not possible: it is of {of_job}, not of {job_id}.")
    return found


def _short(text: str) -> str:
    return f"'{text}'" if len(text) <= 24 else f"'{text[:20]}...'"
