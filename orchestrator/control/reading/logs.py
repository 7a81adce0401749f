"""What the ranks of a job printed, line by line, from the pieces that their agents keep in the object store.

Each rank has one stream of bytes in each epoch. A reader's place is how many bytes of each stream it has had; written as text it is an
`offset`, which any later reader goes on from: every line is read exactly once, however often readers, job or controller begin again.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from orchestrator.control.reading.offsets import Mark, Place, Stream
from orchestrator.errors import StorageUnavailable
from orchestrator.paths import JobKeys, lease_of, log_piece_of
from orchestrator.storage import ObjectStore

LOOK_S = 0.5
WHOLE_LOOK_S = 10.0
"""So often at most a reader lists all pieces of the job; in between it asks for the next piece of each stream that it knows."""
_KEYS_PER_REQUEST = 1000
LONGEST_LINE_BYTES = 1 << 20
"""What is longer is cut: a reader keeps an unfinished line in memory."""


class Piece(NamedTuple):
    stream: Stream
    offset: int
    """Of its first byte in the stream."""
    num_bytes: int
    time_s: float
    """When it was shipped, about a second after it was printed; 0: not known."""
    key: str

    @property
    def end(self) -> int:
        return self.offset + self.num_bytes

    @property
    def turn(self) -> tuple[int, float, int, int]:
        """In which order pieces are read."""
        return self.stream.epoch, self.time_s, self.offset, self.stream.rank


@dataclass(frozen=True, kw_only=True)
class LogLine:
    rank: int
    epoch: int
    text: str
    time_s: float
    """When it was shipped; 0: not known."""
    _mark: Mark = field(repr=False)
    _end: int = field(repr=False)
    """In its own stream."""

    @property
    def offset(self) -> str:
        """Who goes on from it reads what comes after this line."""
        return self._mark.offset(Stream(self.epoch, self.rank), self._end)


class LogReader:
    """The lines of all ranks or of one, from the beginning or from where another reader was.

    Raises UserError for an offset that is none of this job's.
    """

    def __init__(
        self, store: ObjectStore, job_id: str, rank: int | None = None, after: str = "", clock: Callable[[], float] = time.monotonic
    ) -> None:  # fmt: skip
        self._store = store
        self._clock = clock
        self._due_s = float("-inf")
        """When all pieces are to be listed again."""
        self._num_pieces = 0
        self._listed_all = False
        """Whether the newest listing was of all pieces."""
        self._job_id = job_id
        self._rank = rank
        self._place = Place(job_id, after)
        self._rest: dict[Stream, tuple[bytes, float]] = {}
        """Of each stream that ends without the end of a line: what comes after its place, and when it was shipped."""
        self._known_epoch = 0
        """The newest at the look before."""

    @property
    def offset(self) -> str:
        return self._place.offset

    def lines(self, ended: bool) -> Iterator[LogLine]:
        """Those that have come since the last call. `ended`: nothing more will come, so that unfinished lines are lines too.

        Raises StorageError; whoever calls again goes on where it broke off.
        """
        pieces = self._pieces() if ended or self._clock() >= self._due_s else self._next_pieces()
        newest = max((piece.stream.epoch for piece in pieces), default=self._known_epoch)
        over = newest if ended else self._known_epoch
        while pieces:
            for piece in pieces:
                yield from self._finish(min(piece.stream.epoch, over))
                yield from self._read(piece)
            pieces = [] if self._listed_all else self._next_pieces()
        yield from self._finish(over + ended)
        self._known_epoch = max(newest, self._known_epoch)

    def skip(self, tail: int | None = None, since_s: float | None = None, most_bytes: float = math.inf) -> None:
        """Pass over what was shipped before `since_s` (seconds since 1970), and over all but a little more than the last `tail` lines:
        to the beginning of a piece, about `most_bytes` before the end at most. `last` gives them exactly. What was passed over is not
        read later either."""
        pieces = self._pieces()
        chosen = [piece for piece in pieces if since_s is None or piece.time_s >= since_s]
        if tail is not None:
            chosen = self._last(chosen, tail, most_bytes)
        place = {piece.stream: piece.end for piece in sorted(pieces, key=lambda piece: piece.end)}
        place |= {piece.stream: piece.offset for piece in sorted(chosen, key=lambda piece: -piece.offset)}
        for stream, at in place.items():
            self._place[stream] = max(self._place[stream], self._line_start(pieces, stream, at))

    def last(self, tail: int, ended: bool) -> list[LogLine]:
        """The last ones of `lines`."""
        return list(deque(self.lines(ended), maxlen=tail))

    def _pieces(self) -> list[Piece]:
        """All there are, in the order in which they are read."""
        began = self._clock()
        found = self._listed(JobKeys(self._job_id).logs)
        self._num_pieces, self._listed_all = len(found), True
        self._due_s = began + max(WHOLE_LOOK_S, 20 * (self._clock() - began))
        return sorted(found, key=lambda piece: piece.turn)

    def _next_pieces(self) -> list[Piece]:
        """Those that begin where the newest epoch's streams have been read to. All, if that is fewer requests, or an epoch has begun."""
        keys = JobKeys(self._job_id)
        known: set[Stream] = {*self._place, *self._rest}
        streams = [stream for stream in known if stream.epoch == self._known_epoch]
        begun = max((lease_of(info.key) for info in self._store.list(keys.leases)), default=0)
        if begun > self._known_epoch or len(streams) >= 1 + self._num_pieces // _KEYS_PER_REQUEST:
            return self._pieces()
        self._listed_all = False
        found = [piece for stream in streams for piece in self._listed(keys.log_pieces_from(*stream, self._known(stream)))]
        return sorted(found, key=lambda piece: piece.turn)

    def _listed(self, prefix: str) -> list[Piece]:
        found = []
        for info in self._store.list(prefix):
            epoch, rank, offset, time_s = log_piece_of(info.key)
            if self._rank in (None, rank) and info.num_bytes:
                found.append(Piece(Stream(epoch, rank), offset, info.num_bytes, time_s, info.key))
        return found

    def _known(self, stream: Stream) -> int:
        """How far the stream has been fetched."""
        return self._place[stream] + len(self._rest.get(stream, (b"", 0.0))[0])

    def _last(self, pieces: list[Piece], tail: int, most_bytes: float) -> list[Piece]:
        """The last pieces that have so many lines together, not counting one of each stream, whose beginning may be in a piece before."""
        chosen: list[Piece] = []
        found, size = 0, 0
        while pieces and size < most_bytes and found < tail + len({piece.stream for piece in chosen}):
            chosen.append(pieces.pop())
            size += chosen[-1].num_bytes
            found += self._store.get(chosen[-1].key).count(b"\n")
        return chosen

    def _line_start(self, pieces: list[Piece], stream: Stream, at: int) -> int:
        """The first place from `at` on where a line begins; `at` if none does, in the middle of one that has no end."""
        mine = [piece for piece in pieces if piece.stream == stream and piece.end >= at > 0]
        for piece in mine:
            start = max(at - 1, piece.offset)
            found = self._store.get(piece.key, start=start - piece.offset).find(b"\n") if start < piece.end else -1
            if found >= 0:
                return start + found + 1
        return at

    def _read(self, piece: Piece) -> Iterator[LogLine]:
        """Two pieces may hold the same bytes, if an agent died between storing one and knowing of it."""
        stream = piece.stream
        end, known = self._place[stream], self._known(stream)
        rest = self._rest.get(stream, (b"", 0.0))[0]
        if piece.end <= known or piece.offset > known:
            return
        data, start = rest + self._store.get(piece.key, start=known - piece.offset), 0
        self._rest.pop(stream, None)  # who stops in the middle and calls again reads it again
        mark = self._place.mark()
        while (length := _line_length(data, start)) is not None:
            text = data[start : start + length]
            start, end = start + length, end + length
            self._place[stream] = end
            yield self._line(stream, text, piece.time_s, mark)
        if start < len(data):
            self._rest[stream] = (data[start:], piece.time_s)

    def _finish(self, before_epoch: int) -> Iterator[LogLine]:
        """A rank's last line, without an end, is a line once the rank can write no more."""
        for stream in sorted(stream for stream in self._rest if stream.epoch < before_epoch):
            rest, time_s = self._rest.pop(stream)
            mark = self._place.mark()
            self._place[stream] += len(rest)
            yield self._line(stream, rest, time_s, mark)

    def _line(self, stream: Stream, text: bytes, time_s: float, mark: Mark) -> LogLine:
        shown = text.removesuffix(b"\n").decode(errors="replace")
        return LogLine(rank=stream.rank, epoch=stream.epoch, text=shown, time_s=time_s, _mark=mark, _end=self._place[stream])


class Reader(Protocol):
    def lines(self, ended: bool) -> Iterator[Any]: ...


def follow(
    reader: Reader, ended: Callable[[], bool], trouble: Callable[[StorageUnavailable], None],
    wait: Callable[[float], None] = time.sleep,
) -> Iterator[Any]:  # fmt: skip
    """Lines as they come, until the job has ended. A store that is out of reach is told to `trouble` and asked again."""
    while True:
        over, began = ended(), time.monotonic()  # asked before the look: what was shipped until then is seen
        try:
            yield from reader.lines(over)
        except StorageUnavailable as error:
            trouble(error)
        else:
            if over:
                return
        wait(max(LOOK_S, 3 * (time.monotonic() - began)))


def _line_length(data: bytes, start: int) -> int | None:
    """Of the line that begins at `start`, with its end; None if it has none yet."""
    end = data.find(b"\n", start, start + LONGEST_LINE_BYTES)
    if end >= 0:
        return end + 1 - start
    return LONGEST_LINE_BYTES if len(data) - start >= LONGEST_LINE_BYTES else None
