"""Pieces of a rank's output: every byte once, whatever the store or the agent does."""

from __future__ import annotations

from pathlib import Path

from orchestrator.control.reading.logs import LogReader
from orchestrator.errors import StorageUnavailable
from orchestrator.paths import JobKeys
from orchestrator.storage import MemoryStore
from orchestrator.supervision.log_shipper import LogShipper, log_name

KEYS = JobKeys("job")
NEVER_S = 3600.0


class LosesAnswers(MemoryStore):
    """Takes what it is given, and says that it did not."""

    failing = False

    def put(self, key: str, data: bytes | memoryview) -> None:
        super().put(key, data)
        if self.failing:
            raise StorageUnavailable("the answer is lost")


def shipper(store: MemoryStore, clock: float = 1.0) -> LogShipper:
    found = LogShipper(KEYS, interval_s=NEVER_S, clock=lambda: clock)
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
