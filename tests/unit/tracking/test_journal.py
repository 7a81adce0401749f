from __future__ import annotations

import json
import resource
import tempfile
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.errors import CorruptObject, StorageFull
from orchestrator.paths import JobKeys
from orchestrator.storage import ObjectInfo
from orchestrator.tracking.journal import Journal, evaluations, history, read_file, read_segments

KEYS = JobKeys("gpt-1")


class DictStore:
    """The part of an ObjectStore that a journal uses."""

    url = "dict:"

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}

    def put(self, key: str, data: bytes | memoryview) -> None:
        self.objects[key] = bytes(data)

    def get(self, key: str, start: int = 0, length: int | None = None) -> bytes:
        return self.objects[key][start : None if length is None else start + length]

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        return iter([ObjectInfo(key, len(self.objects[key])) for key in sorted(self.objects) if key.startswith(prefix)])


def open_journal(path: Path, store: DictStore) -> Journal:
    ticks = count(1000)
    return Journal(path, store, KEYS, clock=lambda: float(next(ticks)))  # type: ignore[arg-type]


def steps(journal: Journal) -> list[int]:
    return [row["step"] for row in history(journal.records())]


def test_records_come_back_in_order_with_seq_and_time(tmp_path: Path) -> None:
    journal = open_journal(tmp_path / "j.jsonl", DictStore())
    assert journal.append("metrics", step=1, values={"loss": 2.5}, time_s=7.0) == 1
    assert journal.append("artifact", name="sample.txt") == 2
    assert list(journal.records()) == [
        {"seq": 1, "time_s": 7.0, "kind": "metrics", "step": 1, "values": {"loss": 2.5}},
        {"seq": 2, "time_s": 1001.0, "kind": "artifact", "name": "sample.txt"},
    ]
    assert [record["seq"] for record in journal.records(after_seq=1)] == [2]


@pytest.mark.parametrize(
    ("kind", "fields", "said"),
    [
        ("metric", {}, "Did you mean 'metrics'"),
        ("metrics", {"step": 1}, "needs values"),
        ("evaluated", {"step": 1, "values": {"loss": "low"}}, "loss='low' is not possible"),
        ("end", {"status": "succeeded"}, "FINISHED, FAILED, KILLED"),
    ],
)
def test_a_record_that_no_reader_understands_is_refused(tmp_path: Path, kind: str, fields: dict[str, object], said: str) -> None:
    journal = open_journal(tmp_path / "j.jsonl", DictStore())
    with pytest.raises(ValueError, match=said):
        journal.append(kind, **fields)
    assert list(journal.records()) == []


def test_a_torn_last_line_is_dropped_and_its_seq_used_again(tmp_path: Path) -> None:
    path = tmp_path / "j.jsonl"
    journal = open_journal(path, DictStore())
    journal.append("metrics", step=1, values={"loss": 1.0})
    with path.open("ab") as file:
        file.write(b'{"seq":2,"time_s":3,"ki')
    again = open_journal(path, DictStore())
    assert again.append("metrics", step=2, values={"loss": 0.5}) == 2
    assert steps(again) == [1, 2]


def test_a_full_disk_leaves_no_half_line(tmp_path: Path) -> None:
    journal = open_journal(tmp_path / "j.jsonl", DictStore())
    journal.append("metrics", step=1, values={"loss": 1.0})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (journal.path.stat().st_size + 10, hard))
    try:
        with pytest.raises(StorageFull, match=r"j\.jsonl"):
            journal.append("metrics", step=2, values={"loss": 0.5})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert journal.append("metrics", step=2, values={"loss": 0.5}) == 2
    assert steps(journal) == [1, 2]


def test_shipping_sends_each_record_once_and_rebuilds_the_file(tmp_path: Path) -> None:
    store = DictStore()
    journal = open_journal(tmp_path / "a.jsonl", store)
    for step in (1, 2):
        journal.append("metrics", step=step, values={"loss": 1 / step})
    journal.ship()
    journal.append("rewind", step=1)
    journal.ship()
    journal.ship()
    assert sorted(store.objects) == [KEYS.journal_segment(1), KEYS.journal_segment(3)]
    elsewhere = open_journal(tmp_path / "new" / "b.jsonl", store)
    assert elsewhere.path.read_bytes() == journal.path.read_bytes()
    assert elsewhere.append("metrics", step=2, values={"loss": 9.0}) == 4


def test_what_was_not_shipped_is_shipped_after_a_crash(tmp_path: Path) -> None:
    store = DictStore()
    journal = open_journal(tmp_path / "j.jsonl", store)
    journal.append("metrics", step=1, values={})
    journal.ship()
    journal.append("metrics", step=2, values={})
    again = open_journal(tmp_path / "j.jsonl", store)
    again.append("metrics", step=3, values={})
    again.ship()
    assert [record["seq"] for record in read_segments(store, KEYS)] == [1, 2, 3]  # type: ignore[arg-type]


@pytest.mark.parametrize("left_behind", [0, 1, 5])
def test_a_file_that_another_machine_left_behind_gives_way_to_the_store(tmp_path: Path, left_behind: int) -> None:
    """The job ran here, went on elsewhere, and comes back: what was never shipped from here is void, however long it is."""
    store = DictStore()
    here = open_journal(tmp_path / "here.jsonl", store)
    here.append("metrics", step=1, values={"loss": 1.0})
    here.ship()
    for step in range(left_behind):
        here.append("metrics", step=step, values={"loss": -1.0}, time_s=1.0)
    there = open_journal(tmp_path / "there.jsonl", store)
    for step in (2, 3):
        there.append("metrics", step=step, values={"loss": 0.5}, time_s=2.0)
    there.ship()
    back = open_journal(tmp_path / "here.jsonl", store)
    assert list(back.records()) == list(there.records())


def test_the_journal_of_a_job_that_had_ended_says_that_it_goes_on(tmp_path: Path) -> None:
    journal = open_journal(tmp_path / "j.jsonl", DictStore())
    journal.append("end", status="KILLED")
    again = open_journal(tmp_path / "j.jsonl", DictStore())
    assert [record["kind"] for record in again.records()] == ["end", "resumed"]


def test_a_missing_or_damaged_segment_is_named(tmp_path: Path) -> None:
    store = DictStore()
    journal = open_journal(tmp_path / "j.jsonl", store)
    for step in range(3):
        journal.append("metrics", step=step, values={})
        journal.ship()
    middle = KEYS.journal_segment(2)
    kept = store.objects.pop(middle)
    with pytest.raises(CorruptObject, match="missing"):
        list(read_segments(store, KEYS))  # type: ignore[arg-type]
    store.objects[middle] = kept[:10] + b"\n"
    with pytest.raises(CorruptObject, match=middle):
        list(read_segments(store, KEYS))  # type: ignore[arg-type]


def test_where_segments_overlap_the_later_one_counts(tmp_path: Path) -> None:
    """A supervisor that lost its job shipped once more, too much, under its own first seq."""
    store = DictStore()
    journal = open_journal(tmp_path / "j.jsonl", store)
    journal.append("metrics", step=1, values={"loss": 1.0})
    journal.ship()
    journal.append("metrics", step=2, values={"loss": 2.0})
    journal.ship()
    first = KEYS.journal_segment(1)
    store.objects[first] += store.objects[KEYS.journal_segment(2)].replace(b"2.0", b"9.9")
    assert [row["loss"] for row in history(read_segments(store, KEYS))] == [1.0, 2.0]  # type: ignore[arg-type]


def test_history_applies_rewinds_to_metrics_and_evaluations() -> None:
    def record(kind: str, step: int, **values: float) -> dict[str, object]:
        return {"seq": 0, "time_s": 0.0, "kind": kind, "step": step, "values": values}

    rows = [
        record("evaluated", 0, loss=5.0),
        record("metrics", 1, loss=4.0),
        record("metrics", 2, loss=3.0),
        record("evaluated", 2, loss=3.5),
        record("rewind", 1),
        record("metrics", 2, loss=2.9),
        record("metrics", 2, memory=1.0),
    ]
    assert [(row["step"], row["loss"]) for row in history(rows)] == [(1, 4.0), (2, 2.9)]
    assert history(rows)[1]["memory"] == 1.0
    assert [row["step"] for row in evaluations(rows)] == [0]


class Training:
    """Sixty steps with a commit every seven; what can go wrong between two steps goes wrong when told."""

    LAST = 60
    COMMIT_EVERY = 7

    def __init__(self, folder: Path) -> None:
        self.store = DictStore()
        self.folder = folder
        self.machines = count()
        self.committed = 0
        self.step = 0
        self.move()

    def move(self) -> None:
        """To a machine that never saw the job."""
        self.path = self.folder / f"{next(self.machines)}.jsonl"
        self.reopen()

    def reopen(self) -> None:
        self.journal = open_journal(self.path, self.store)
        self.go_back()

    def go_back(self) -> None:
        self.journal.rewind(self.committed)
        self.step = self.committed

    def do_step(self) -> None:
        self.step += 1
        self.journal.append("metrics", step=self.step, values={"loss": 1 / self.step})
        if self.step % 10 == 0:
            self.journal.append("evaluated", step=self.step, values={"loss": 2 / self.step})
        if self.step % self.COMMIT_EVERY == 0:
            self.journal.ship()
            self.committed = self.step

    def suffer(self, fault: str) -> None:
        match fault:
            case "rank dies":
                self.go_back()
            case "supervisor dies":
                self.journal.close()
                self.reopen()
            case "supervisor dies writing":
                with self.path.open("ab") as file:
                    file.write(b'{"seq": 99')
                self.reopen()
            case "machine lost":
                self.move()
            case "dies after shipping, before the commit":
                self.journal.ship()
                self.reopen()


FAULTS = ("rank dies", "supervisor dies", "supervisor dies writing", "machine lost", "dies after shipping, before the commit")


def curve(rows: list[dict[str, object]]) -> list[tuple[object, object]]:
    return [(row["step"], row["loss"]) for row in rows]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 12), st.sampled_from(FAULTS)), max_size=12))
def test_any_run_of_crashes_leaves_the_calm_history(story: list[tuple[int, str]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        training = Training(Path(folder))
        for num_steps, fault in story:
            for _ in range(min(num_steps, Training.LAST - training.step)):
                training.do_step()
            training.suffer(fault)
        while training.step < Training.LAST:
            training.do_step()
        training.journal.ship()
        for records in (list(read_file(training.path)), list(read_segments(training.store, KEYS))):  # type: ignore[arg-type]
            assert [record["seq"] for record in records] == list(range(1, len(records) + 1))
            assert curve(history(records)) == [(step, 1 / step) for step in range(1, Training.LAST + 1)]
            assert curve(evaluations(records)) == [(step, 2 / step) for step in range(10, Training.LAST + 1, 10)]


def test_numbers_beyond_json_survive(tmp_path: Path) -> None:
    journal = open_journal(tmp_path / "j.jsonl", DictStore())
    journal.append("metrics", step=1, values={"loss": float("inf")})
    assert json.loads(journal.path.read_text())["values"]["loss"] == float("inf")
