"""Rank logs go to the object store in pieces, each byte in exactly one of them.

Who follows is not known here. So a log that is young, when it is looked at most, goes about once a second; later its pieces are rarer: a
rank that prints all the time for a week would make an object of each second.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from orchestrator.errors import StorageError
from orchestrator.paths import JobKeys, log_piece_of
from orchestrator.storage import ObjectStore

INTERVAL_S = 1.0
LONGEST_INTERVAL_S = 10.0
INTERVAL_PER_AGE = 1 / 60
"""Of a log, until the longest interval is reached."""
PIECE_BYTES = 4 * 1024 * 1024

log = logging.getLogger("orchestrator.agent")


def log_name(bundle: int, epoch: int, rank: int) -> str:
    """Of the file of a rank's output on its node."""
    return f"{_of_bundle(bundle)}{epoch:08d}-{rank:05d}.log"


def _of_bundle(bundle: int) -> str:
    return f"rank-{bundle:05d}-"


@dataclass
class Tail:
    """How far one rank's log has been shipped."""

    path: Path
    epoch: int
    rank: int
    since_s: float
    """Since when it is followed here."""
    offset: int | None = 0
    """None: an agent before this one has shipped some of it."""
    ended: bool = False
    shipped_s: float = 0.0
    """When the newest piece was."""
    trying: tuple[int, float] | None = None
    """Length and time of a piece whose store failed. It may be there all the same: the next try writes the same one."""


class LogShipper:
    """A thread that looks every `interval_s`. A store that is down delays the pieces; the file keeps them."""

    def __init__(self, keys: JobKeys, interval_s: float = INTERVAL_S, clock: Callable[[], float] = time.time) -> None:
        self._keys = keys
        self._clock = clock
        self._interval_s = interval_s
        self._store: ObjectStore | None = None
        self._tails: list[Tail] = []
        self._lock = threading.Lock()
        self._shipping = threading.Lock()
        self._hurry = threading.Event()
        threading.Thread(target=self._run, name="logs", daemon=True).start()

    def use(self, open_store: Callable[[], ObjectStore]) -> None:
        """The store, opened at the first call."""
        self._store = self._store or open_store()

    def follow(self, path: Path, epoch: int, rank: int) -> None:
        with self._lock:
            self._tails.append(Tail(path, epoch, rank, self._clock()))

    def take_over(self, folder: Path, bundle: int) -> None:
        """What an agent of this bundle has left here when it died: its ranks are dead too."""
        with self._lock:
            for path in sorted(folder.glob(f"{_of_bundle(bundle)}*.log")):
                epoch, rank = path.stem.split("-")[2:]
                self._tails.append(Tail(path, int(epoch), int(rank), self._clock(), offset=None, ended=True))

    def ended(self, epoch: int, rank: int) -> None:
        """The rank writes no more: its log is shipped at once and its file removed."""
        with self._lock:
            for tail in self._tails:
                tail.ended = tail.ended or (tail.epoch, tail.rank) == (epoch, rank)
        self._hurry.set()

    def flush(self) -> bool:
        """Ship all there is now. False if the store refused some of it."""
        with self._shipping, self._lock:
            tails = list(self._tails)
        shipped = [self._ship(tail) for tail in tails]
        return all(shipped)

    def ship_due(self) -> None:
        """What the thread does at each look: ship what has ended, what fills a piece and what has waited long enough."""
        with self._lock:
            tails = list(self._tails)
        for tail in tails:
            if self._is_due(tail):
                self._ship(tail)

    def _run(self) -> None:
        while True:
            self._hurry.wait(self._interval_s)
            self._hurry.clear()
            self.ship_due()

    def _is_due(self, tail: Tail) -> bool:
        now = self._clock()
        interval_s = min((now - tail.since_s) * INTERVAL_PER_AGE, LONGEST_INTERVAL_S)
        if tail.ended or not 0 <= now - tail.shipped_s < interval_s:  # a clock that was set back holds nothing up
            return True
        return tail.offset is not None and _size(tail.path) - tail.offset >= PIECE_BYTES

    def _ship(self, tail: Tail) -> bool:
        with self._shipping:
            ended = tail.ended  # read before the bytes: what came after them is not lost
            try:
                shipped = self._ship_pieces(tail)
            except StorageError as error:
                log.warning("log of rank %d waits: %s", tail.rank, error)
                return False
            if ended and shipped:
                self._forget(tail)
            return shipped

    def _ship_pieces(self, tail: Tail) -> bool:
        if self._store is None or not tail.path.exists():
            return False
        if tail.offset is None:
            tail.offset = self._shipped_before(self._store, tail)
        with tail.path.open("rb") as file:
            file.seek(tail.offset)
            while piece := file.read(tail.trying[0] if tail.trying else PIECE_BYTES):
                tail.trying = tail.trying or (len(piece), self._clock())
                self._store.put(self._keys.log_piece(tail.epoch, tail.rank, tail.offset, tail.trying[1]), piece)
                tail.offset, tail.shipped_s, tail.trying = tail.offset + len(piece), self._clock(), None
        return True

    def _shipped_before(self, store: ObjectStore, tail: Tail) -> int:
        pieces = store.list(self._keys.log_pieces(tail.epoch, tail.rank))
        return max((log_piece_of(info.key)[2] + info.num_bytes for info in pieces), default=0)

    def _forget(self, tail: Tail) -> None:
        with self._lock:
            if tail in self._tails:
                self._tails.remove(tail)
                tail.path.unlink(missing_ok=True)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:  # it was shipped, and removed
        return 0
