"""Pieces of a rank's output: every byte once, whatever the store or the agent does."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from orchestrator.control.reading.logs import LogReader
from orchestrator.errors import StorageUnavailable
from orchestrator.paths import JobKeys
from orchestrator.storage import MemoryStore
from orchestrator.supervision.log_shipper import LONGEST_INTERVAL_S, PIECE_BYTES, LogShipper, log_name

KEYS = JobKeys("job")
NEVER_S = 3600.0


class LosesAnswers(MemoryStore):
    """Takes what it is given, and says that it did not."""

    failing = False

    def put(self, key: str, data: bytes | memoryview) -> None:
        super().put(key, data)
        if self.failing:
            raise StorageUnavailable("the answer is lost")


def shipper(store: MemoryStore, clock: float | Callable[[], float] = 1.0) -> LogShipper:
    found = LogShipper(KEYS, interval_s=NEVER_S, clock=clock if callable(clock) else lambda: clock)
    found.use(lambda: store)
    return found


def lines(store: MemoryStore) -> list[str]:
    return [line.text for line in LogReader(store, "job").lines(ended=True)]


def test_a_piece_whose_answer_was_lost_is_written_again_as_it_was(tmp_path: Path) -> None:
    store, path = LosesAnswers(), tmp_path / log_name(0, 1, 0)
    path.write_bytes(b"one\ntw")
    ship = shipper(store)
    ship.follow(path, 1, 0)
    store.failing = True
    assert not ship.flush()
    path.write_bytes(b"one\ntwo\n")
    store.failing = False
    assert ship.flush()
    assert [(info.key, info.num_bytes) for info in store.list(KEYS.logs)] == [
        (KEYS.log_piece(1, 0, 0, 1.0), 6), (KEYS.log_piece(1, 0, 6, 1.0), 2),
    ]  # fmt: skip
    assert lines(store) == ["one", "two"]


def test_what_an_agent_that_died_has_left_is_shipped_by_the_next_one_of_its_bundle(tmp_path: Path) -> None:
    store = MemoryStore()
    mine, other = tmp_path / log_name(0, 3, 1), tmp_path / log_name(1, 3, 2)
    mine.write_bytes(b"shipped\nnot yet\n")
    other.write_bytes(b"of an agent that lives\n")
    store.put(KEYS.log_piece(3, 1, 0, 1.0), b"shipped\n")
    ship = shipper(store, clock=2.0)
    ship.take_over(tmp_path, 0)
    assert ship.flush()
    assert lines(store) == ["shipped", "not yet"]
    assert not mine.exists() and other.exists()


def test_a_rank_that_prints_all_the_time_makes_rarer_objects_as_its_log_grows_old(tmp_path: Path) -> None:
    store, path, now_s = MemoryStore(), tmp_path / log_name(0, 1, 0), 1000.0
    path.touch()
    ship = shipper(store, lambda: now_s)
    ship.follow(path, 1, 0)
    kept, longest = 0, 0
    for number in range(3600):
        now_s += 1.0
        with path.open("a") as file:
            file.write(f"{number:04d}\n")
        ship.ship_due()
        kept = sum(info.num_bytes for info in store.list(KEYS.logs)) // 5
        assert kept == number + 1 or number >= 60, "a young log goes at each look"
        longest = max(longest, number + 1 - kept)
    assert longest <= LONGEST_INTERVAL_S
    assert len(list(store.list(KEYS.logs))) < 600
    now_s += LONGEST_INTERVAL_S
    ship.ship_due()
    assert lines(store) == [f"{number:04d}" for number in range(3600)]


def old_shipper(tmp_path: Path, store: MemoryStore) -> tuple[LogShipper, Path]:
    """One whose rank has printed for long, and has printed a second ago."""
    now_s, path = 1000.0, tmp_path / log_name(0, 1, 0)
    ship = shipper(store, lambda: now_s)
    path.touch()
    ship.follow(path, 1, 0)
    now_s += 3600.0
    path.write_bytes(b"old\n")
    ship.ship_due()
    now_s += 1.0
    assert lines(store) == ["old"]
    return ship, path


def test_the_last_lines_and_what_fills_a_piece_do_not_wait(tmp_path: Path) -> None:
    store = MemoryStore()
    ship, path = old_shipper(tmp_path, store)
    with path.open("ab") as file:
        file.write(b"new\n")
    ship.ship_due()
    assert lines(store) == ["old"]
    with path.open("ab") as file:
        file.write((b"x" * 1023 + b"\n") * (PIECE_BYTES // 1024))
    ship.ship_due()
    assert {line[:3] for line in lines(store)} == {"old", "new", "xxx"}
    with path.open("ab") as file:
        file.write(b"last\n")
    ship.ended(1, 0)
    ship.ship_due()
    assert lines(store)[-1] == "last" and not path.exists()
