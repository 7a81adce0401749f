"""Lines of logs: each once, from any offset, over dropped readers, restarts of the job and a store that fails."""

from __future__ import annotations

import base64
import random
import zlib
from collections.abc import Iterator
from itertools import islice

import pytest

from orchestrator.control.reading.logs import LONGEST_LINE_BYTES, LogLine, LogReader, follow
from orchestrator.errors import StorageUnavailable, UserError
from orchestrator.paths import JobKeys
from orchestrator.storage import MemoryStore, ObjectStore

KEYS = JobKeys("job")


class Printed:
    """Ranks that print, and agents that ship it in pieces which end anywhere."""

    def __init__(self, store: ObjectStore, seed: int = 0) -> None:
        self.store, self.random = store, random.Random(seed)
        self.said: dict[tuple[int, int], list[str]] = {}
        self.unshipped: dict[tuple[int, int], bytes] = {}
        self.offsets: dict[tuple[int, int], int] = {}
        self.time_s = 1000.0

    def say(self, epoch: int, rank: int, text: str, end: str = "\n") -> None:
        stream = epoch, rank
        self.said.setdefault(stream, []).append(text)
        self.unshipped[stream] = self.unshipped.get(stream, b"") + f"{text}{end}".encode()

    def ship(self, share: float = 1.0) -> None:
        """Of what is there about such a share."""
        for stream, waiting in self.unshipped.items():
            count = len(waiting) if share == 1.0 else self.random.randint(0, int(len(waiting) * share))
            if count:
                self.time_s += 1
                offset = self.offsets.get(stream, 0)
                self.store.put(KEYS.log_piece(*stream, offset, self.time_s), waiting[:count])
                self.offsets[stream], self.unshipped[stream] = offset + count, waiting[count:]


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore()


@pytest.fixture
def printed(store: MemoryStore) -> Printed:
    return Printed(store)


def by_stream(lines: list[LogLine]) -> dict[tuple[int, int], list[str]]:
    found: dict[tuple[int, int], list[str]] = {}
    for line in lines:
        found.setdefault((line.epoch, line.rank), []).append(line.text)
    return found


@pytest.mark.parametrize("seed", range(8))
def test_a_reader_that_is_dropped_fifty_times_sees_every_line_exactly_once(seed: int, store: MemoryStore) -> None:
    """Between the drops ranks go on printing, and the job is restarted twice: epochs 1, 2 and 3."""
    printed, chance = Printed(store, seed), random.Random(seed)
    seen: list[LogLine] = []
    offset, number = "", 0
    for drop in range(50):
        for _ in range(chance.randint(0, 12)):
            printed.say(1 + drop // 20, chance.randrange(4), f"line {number} é{'x' * chance.randrange(40)}")
            number += 1
        printed.ship(chance.choice([0.3, 0.9, 1.0]) if drop not in (19, 39) else 1.0)
        reader = LogReader(store, "job", after=offset)
        for line in islice(reader.lines(ended=False), chance.randint(0, 15)):
            seen.append(line)
            offset = line.offset
    printed.ship()
    seen += LogReader(store, "job", after=offset).lines(ended=True)
    assert number > 200 and by_stream(seen) == printed.said


def test_an_unfinished_line_comes_when_it_is_finished_or_can_never_be(printed: Printed, store: MemoryStore) -> None:
    reader = LogReader(store, "job")
    printed.say(1, 0, "half", end="")
    printed.ship()
    assert list(reader.lines(ended=False)) == []
    printed.say(1, 0, " done")
    printed.say(1, 0, "killed in the mid", end="")
    printed.ship()
    assert [line.text for line in reader.lines(ended=False)] == ["half done"]
    printed.say(2, 0, "again")
    printed.ship()
    assert [line.text for line in reader.lines(ended=False)] == ["again"]  # an agent may ship the rest of epoch 1 still
    assert [line.text for line in reader.lines(ended=False)] == ["killed in the mid"]
    assert list(reader.lines(ended=True)) == []


def test_at_the_end_of_a_job_the_epochs_stand_in_order(printed: Printed, store: MemoryStore) -> None:
    printed.say(1, 0, "killed in the mid", end="")
    printed.ship()
    printed.say(2, 0, "again")
    printed.say(2, 0, "no end", end="")
    printed.ship()
    assert [line.text for line in LogReader(store, "job").lines(ended=True)] == ["killed in the mid", "again", "no end"]


def test_ranks_stand_in_the_order_in_which_their_output_was_shipped(printed: Printed, store: MemoryStore) -> None:
    for rank, text in ((1, "a"), (0, "b"), (1, "c")):
        printed.say(1, rank, text)
        printed.ship()
    found = list(LogReader(store, "job").lines(ended=True))
    assert [(line.rank, line.text, line.time_s) for line in found] == [(1, "a", 1001.0), (0, "b", 1002.0), (1, "c", 1003.0)]
    assert [line.text for line in LogReader(store, "job", rank=1).lines(ended=True)] == ["a", "c"]


def test_pieces_that_hold_the_same_bytes_are_read_once(store: MemoryStore) -> None:
    """An agent that dies between storing a piece and knowing of it: the next one may ship the same bytes again, and more."""
    store.put(KEYS.log_piece(1, 0, 0, 1.0), b"one\ntw")
    store.put(KEYS.log_piece(1, 0, 0, 2.0), b"one\n")
    store.put(KEYS.log_piece(1, 0, 4, 3.0), b"two\nthree\n")
    assert [line.text for line in LogReader(store, "job").lines(ended=True)] == ["one", "two", "three"]


def test_a_piece_from_before_there_were_times_in_their_names(store: MemoryStore) -> None:
    store.put(f"{KEYS.logs}00000001/00000/000000000000", b"old\n")
    assert [(line.text, line.time_s) for line in LogReader(store, "job").lines(ended=True)] == [("old", 0.0)]


def test_a_line_without_end_is_cut(store: MemoryStore) -> None:
    store.put(KEYS.log_piece(1, 0, 0, 1.0), b"x" * (LONGEST_LINE_BYTES + 5) + b"\nnext\n")
    assert [len(line.text) for line in LogReader(store, "job").lines(ended=False)] == [LONGEST_LINE_BYTES, 5, 4]


class Counting(MemoryStore):
    """How many keys its listings gave."""

    def __init__(self) -> None:
        super().__init__()
        self.listed = 0

    def list(self, prefix: str) -> Iterator:
        found = list(super().list(prefix))
        self.listed += len(found)
        return iter(found)


def test_a_follower_does_not_list_a_long_log_again_and_again() -> None:
    store, time_s = Counting(), 0.0
    printed = Printed(store)
    for number in range(5000):
        printed.say(1, number % 2, f"line {number}")
        printed.ship()
    store.put(KEYS.lease(1), b"")
    reader = LogReader(store, "job", clock=lambda: time_s)
    assert len(list(reader.lines(ended=False))) == 5000
    store.listed = 0
    seen = []
    for number in range(9):  # in nine seconds
        time_s += 1.0
        for part in "ab":
            printed.say(1, number % 2, f"new {number}{part}")
            printed.ship()
        seen += [line.text for line in reader.lines(ended=False)]
    assert seen == [f"new {number}{part}" for number in range(9) for part in "ab"] and store.listed < 50
    store.put(KEYS.lease(2), b"")  # the job has been restarted
    printed.say(2, 5, "again")
    printed.ship()
    assert [line.text for line in reader.lines(ended=False)] == ["again"]
    printed.say(2, 6, "a rank that prints for the first time")
    printed.ship()
    time_s += 30.0
    assert len(list(reader.lines(ended=False))) == 1


# where to begin


@pytest.mark.parametrize("tail", [1, 2, 3, 5, 9, 100])
def test_the_last_lines(tail: int, printed: Printed, store: MemoryStore) -> None:
    for number in range(10):
        printed.say(1, number % 2, f"line {number}")
        printed.ship(1.0 if number % 3 else 0.6)
    printed.ship()
    everything = [line.text for line in LogReader(store, "job").lines(ended=True)]
    reader = LogReader(store, "job")
    reader.skip(tail=tail)
    assert [line.text for line in reader.last(tail, ended=True)] == everything[-tail:]
    printed.say(1, 0, "after it")
    printed.ship()
    assert [line.text for line in reader.lines(ended=False)] == ["after it"]


def test_since_a_time(printed: Printed, store: MemoryStore) -> None:
    for number in range(6):
        printed.say(1, number % 2, f"line {number}")
        printed.ship()
    reader = LogReader(store, "job")
    reader.skip(since_s=1004.0)
    assert [line.text for line in reader.lines(ended=True)] == ["line 3", "line 4", "line 5"]


def test_since_a_time_in_the_middle_of_a_line_begins_with_the_next(printed: Printed, store: MemoryStore) -> None:
    printed.say(1, 0, "one\ntwo", end="")
    printed.ship()
    printed.say(1, 0, " halves\nthree")
    printed.ship()
    reader = LogReader(store, "job")
    reader.skip(since_s=1002.0)
    assert [line.text for line in reader.lines(ended=True)] == ["three"]


def test_an_offset_of_another_job_and_nonsense_are_refused(printed: Printed, store: MemoryStore) -> None:
    printed.say(1, 0, "x")
    printed.ship()
    offset = next(LogReader(store, "job").lines(ended=True)).offset
    with pytest.raises(UserError, match="is of job, not of other"):
        LogReader(store, "other", after=offset)
    for text in ('["job", {"1": {"0": Infinity}}]', "[" * 100_000, '["job", {"1": {"0": ' + '{"a": ' * 100_000):
        with pytest.raises(UserError, match="allowed is the offset of a line of job's logs"):
            LogReader(store, "job", after=base64.urlsafe_b64encode(zlib.compress(text.encode())).decode().rstrip("="))
    for nonsense in ("x", "?!", offset[:-4], f"1-0.{offset}", f"1-0--5.{offset}", "eJyrVsrPVrJSSkksSVSqBQAfWgSG", ""):
        if nonsense:
            with pytest.raises(UserError, match="allowed is the offset of a line of job's logs"):
                LogReader(store, "job", after=nonsense)


def test_the_offsets_of_many_lines_share_what_was_written_once(printed: Printed, store: MemoryStore) -> None:
    """To write down all streams takes longer than to read a line."""
    for number in range(50):
        for rank in range(4):
            printed.say(1, rank, f"line {number}")
            printed.ship()
    lines = list(LogReader(store, "job").lines(ended=True))
    assert len({line.offset.rpartition(".")[2] for line in lines}) == 1
    for at in (0, 3, 77, 198):
        left = LogReader(store, "job", after=lines[at].offset).lines(ended=True)
        assert [(line.rank, line.text) for line in left] == [(line.rank, line.text) for line in lines[at + 1 :]]


# follow


class Flaky(MemoryStore):
    """Fails every third call."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def _count(self) -> None:
        self.calls += 1
        if self.calls % 3 == 0:
            raise StorageUnavailable("no answer")

    def list(self, prefix: str) -> Iterator:
        self._count()
        return super().list(prefix)

    def get(self, key: str, start: int = 0, length: int | None = None) -> bytes:
        self._count()
        return super().get(key, start, length)


def test_a_store_that_fails_is_asked_again_and_no_line_comes_twice() -> None:
    store = Flaky()
    printed = Printed(store)
    told: list[StorageUnavailable] = []
    waits = iter(range(40))

    def wait(_: float) -> None:
        number = next(waits, None)
        if number is not None:
            printed.say(1 + number // 20, number % 3, f"line {number}")
            printed.ship()

    lines = list(follow(LogReader(store, "job"), lambda: next(waits, None) is None, told.append, wait))
    assert by_stream(lines) == printed.said and len(lines) > 15 and told


def test_follow_ends_with_the_job(printed: Printed, store: MemoryStore) -> None:
    printed.say(1, 0, "no end", end="")
    printed.ship()
    assert [line.text for line in follow(LogReader(store, "job"), lambda: True, lambda error: None, lambda s: None)] == ["no end"]
