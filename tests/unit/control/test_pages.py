"""However a job prints, a page of it is about a megabyte."""

from __future__ import annotations

import pytest

from orchestrator.control.reading.logs import LogReader
from orchestrator.control.reading.pages import LOOK_BACK_BYTES, MAX_TAIL_LINE, PAGE_BYTES, read_page, read_tail
from orchestrator.job import Job, JobState
from orchestrator.paths import JobKeys
from orchestrator.spec import DataSpec, JobSpec, ModelSpec, TrainingSpec, WorkloadSpec
from orchestrator.storage import MemoryStore

KEYS = JobKeys("job")
MIB = 1 << 20
SPEC = JobSpec(
    workload=WorkloadSpec(name="tiny", entrypoint="tiny:Tiny"),
    model=ModelSpec(name="m"),
    data=DataSpec(name="d"),
    training=TrainingSpec(max_steps=10, global_batch_size=8, micro_batch_size=2),
)
JOB = Job(id="job", spec=SPEC, state=JobState.SUCCEEDED, submitted_s=0.0, queued_s=0.0)


class CountingStore(MemoryStore):
    def __init__(self) -> None:
        super().__init__()
        self.num_read = 0

    def get(self, key, start=0, length=None):
        found = super().get(key, start, length)
        self.num_read += len(found)
        return found


@pytest.fixture
def store() -> CountingStore:
    return CountingStore()


def put(store: MemoryStore, *pieces: bytes) -> None:
    offset = 0
    for number, piece in enumerate(pieces):
        store.put(KEYS.log_piece(1, 0, offset, 1000.0 + number), piece)
        offset += len(piece)


def test_empty_lines_count_too(store):
    put(store, b"\n" * MIB)
    page = read_page(LogReader(store, "job"), JOB)
    assert (len(page.lines), page.more) == (PAGE_BYTES // 64, True)


def test_the_last_lines_are_a_megabyte_at_most_and_long_ones_are_cut(store):
    put(store, *(b"%05d" % number + b"x" * 30_000 + b"\n" for number in range(300)))
    page = read_tail(LogReader(store, "job"), JOB, 10_000)
    assert PAGE_BYTES * 0.9 < sum(len(line.text) for line in page.lines) <= PAGE_BYTES
    assert {len(line.text) for line in page.lines} == {MAX_TAIL_LINE + 1} and page.ended
    assert list(LogReader(store, "job", after=page.offset).lines(ended=True)) == []


def test_of_a_progress_bar_without_end_a_few_megabytes_are_read_and_its_newest_is_shown(store):
    put(store, *(b"\r%6d of 999999" % number * (MIB // 17) for number in range(40)))
    page = read_tail(LogReader(store, "job"), JOB, 1000)
    assert page.lines[-1].text.endswith("    39 of 999999")
    assert store.num_read < 4 * LOOK_BACK_BYTES


def test_the_last_lines_are_those_that_were_asked_for(store):
    put(store, b"a\nb\n", b"c\nd")
    assert [line.text for line in read_tail(LogReader(store, "job"), JOB, 3).lines] == ["b", "c", "d"]
