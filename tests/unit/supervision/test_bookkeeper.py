"""The ledger as a supervisor keeps it: what agents tell, late too, and what the next supervisor finds in the journal."""

from __future__ import annotations

import math

import pytest

from orchestrator.paths import Home, JobKeys
from orchestrator.runtime.link import Phase
from orchestrator.spec import JobSpec, from_dict
from orchestrator.storage import MemoryStore
from orchestrator.supervision.accounting import Bucket
from orchestrator.supervision.attempt import Attempt
from orchestrator.supervision.bookkeeper import Bookkeeper, newest
from orchestrator.supervision.chronicle import Chronicle
from orchestrator.supervision.context import RunContext
from orchestrator.supervision.diagnosis import RankExit
from orchestrator.supervision.ledger import MAX_MARKS, Ledger, Wait
from orchestrator.supervision.status_board import StatusBoard
from orchestrator.supervision.tracking_child import TrackingChild
from orchestrator.tracking.journal import Journal

KEYS = JobKeys("job")
VALUES = {
    "workload": {"name": "x", "entrypoint": "m:C"}, "model": {"name": "x"}, "data": {"name": "x"}, "tracking": {"enabled": False},
    "training": {"max_steps": 50, "global_batch_size": 8, "micro_batch_size": 2},
}  # fmt: skip
B = Bucket


class Run:
    """A supervisor's books on a clock of its own, over its lives."""

    def __init__(self, folder, run=1, now_s=100.0, **wait):
        self.folder, self.store, self.run, self.now_s, self.wait = folder, MemoryStore(), run, now_s, Wait(**wait)
        self.epoch = 0
        self.open()

    def open(self, **wait):
        self.wait = Wait(**wait) if wait else self.wait
        context = RunContext(
            job_id="job", run=self.run, spec=from_dict(JobSpec, VALUES), home=Home(self.folder), ranks_per_bundle=(2,), wait=self.wait
        )
        self.board = StatusBoard("job", 50, "life")
        self.journal = Journal(self.folder / "journal.jsonl", self.store, KEYS, clock=lambda: self.now_s)
        chronicle = Chronicle(self.run, self.board, self.journal, TrackingChild(context, self.journal.path))
        self.books = Bookkeeper(context, chronicle, lambda: self.now_s)

    def pass_s(self, seconds):
        self.now_s += seconds

    def begin(self, base_step=0):
        self.epoch += 1
        self.forked_s = self.now_s
        self.books.began(Attempt(self.epoch, 2, base_step, self.now_s))

    def hear(self, type_, rank=0, epoch=None, **fields):
        told = {"type": type_, "rank": rank, "epoch": epoch or self.epoch, "time_s": self.now_s}
        self.books.heard({**told, **fields})

    def clock(self, phase=Phase.FORWARD, **seconds):
        spent_s = [seconds.get(one.name.lower(), 0.0) for one in Phase]
        return {"created_s": self.forked_s, "ticked_s": self.forked_s + sum(spent_s), "phase": int(phase), "spent_s": spent_s}

    def told(self):
        ledger = self.books.ledger()
        assert math.fsum(ledger.seconds.values()) == pytest.approx(ledger.worker_s)
        return {bucket: round(passed, 6) for bucket, passed in ledger.seconds.items() if passed}


def killed(run, spent_s):
    """Both ranks train for so long and save at half of it; rank 1 dies, which is known a second later."""
    run.begin()
    run.books.started()
    run.pass_s(spent_s)
    for rank in (0, 1):
        run.hear("staged", rank, step=10, writer=rank, spent_s=run.clock(forward=spent_s / 2)["spent_s"])
    run.hear("exit", 1, clock=run.clock(forward=spent_s))
    run.pass_s(1)
    run.books.failed([RankExit(rank=1, time_s=run.now_s - 1, signal=9)], hung=False)


def test_a_killed_rank_from_the_queue_to_the_end(tmp_path):
    run = Run(tmp_path, queued_s=90.0, since_s=90.0, admitted_s=97.0)
    assert run.told() == {B.QUEUE: 14, B.PROVISION: 6}
    run.pass_s(2)
    killed(run, 8)
    run.pass_s(3)
    run.begin(base_step=10)
    run.hear("exit", 0, epoch=1, clock={**run.clock(forward=8), "created_s": 102.0, "ticked_s": 110.0})  # killed meanwhile, heard late
    run.books.started()
    run.pass_s(5)
    for rank in (0, 1):
        run.hear("exit", rank, clock=run.clock(Phase.END, restore=1, forward=4))
    run.books.left()
    run.pass_s(2)
    expected = {B.QUEUE: 14, B.PROVISION: 6, B.START: 4, B.STEP: 8 + 8, B.LOST: 8, B.DETECTION: 2, B.RECOVERY: 6 + 2, B.IDLE: 4}
    assert run.told() == expected
    closed = run.books.close()
    assert (closed.closed, closed.worker_s, closed.wall_s) == (True, 62.0, 31.0)
    assert closed.goodput_share == 16 / 48


def test_what_is_known_by_a_record_is_what_the_next_supervisor_begins_with(tmp_path):
    run = Run(tmp_path, admitted_s=100.0)
    run.begin()
    run.books.started()
    run.pass_s(10)
    for rank in (0, 1):
        run.hear("staged", rank, step=10, writer=rank, spent_s=run.clock(forward=6)["spent_s"])
    run.hear("clocks", clocks={rank: run.clock(forward=10) for rank in (0, 1)})
    run.books.record()
    run.pass_s(4)  # it dies now, its ranks go on until the next one kills them
    run.open()
    assert run.told() == {B.STEP: 20, B.LOST: 8}
    run.begin(base_step=10)
    assert run.told() == {B.STEP: 12, B.LOST: 8 + 8}
    run.pass_s(1)
    assert run.told() == {B.STEP: 12, B.LOST: 16, B.RECOVERY: 2}


def test_saves_that_can_be_no_mark_any_more_are_forgotten_and_the_ledger_is_the_same(tmp_path):
    run = Run(tmp_path)
    run.begin()
    run.pass_s(200)
    (life,) = run.books._lives
    all_saves = {step: {rank: run.clock(forward=step)["spent_s"] for rank in (0, 1)} for step in range(1, 101)}
    for step, by_rank in all_saves.items():
        for rank, spent_s in by_rank.items():
            run.hear("staged", rank, step=step, writer=rank, spent_s=spent_s)
            assert len(life.saves) <= MAX_MARKS + 1
    run.hear("staged", 0, step=101, writer=0, spent_s=run.clock(forward=101)["spent_s"])  # of the other rank nothing is heard
    assert set(life.saves) == set(range(93, 102))
    found = run.books.ledger()
    life.saves = all_saves
    assert run.books.ledger() == found and set(found.marks) == set(range(93, 101))


def test_the_clocks_of_the_dead_are_not_taken_for_those_of_the_living(tmp_path):
    run = Run(tmp_path)
    run.begin()
    run.pass_s(4)
    run.hear("exit", 1, clock=run.clock(forward=3))
    run.pass_s(1)
    run.hear("clocks", clocks={rank: run.clock(forward=3) for rank in (0, 1)})
    run.hear("exit", 0, epoch=7, clock=run.clock(forward=1))  # of a life that nobody knows
    assert run.told() == {B.STEP: 5 + 4, B.IDLE: 1}


def test_a_run_that_never_forked_a_rank_closes_too(tmp_path):
    run = Run(tmp_path)
    run.pass_s(3)
    run.books.left()
    run.pass_s(1)
    assert run.told() == {B.START: 6, B.IDLE: 2}


def test_the_board_and_the_journal_have_it(tmp_path):
    run = Run(tmp_path, queued_s=90.0, since_s=90.0, admitted_s=97.0)
    run.begin()
    run.pass_s(1.5)
    run.hear("clocks", clocks={rank: run.clock(data=1.5) for rank in (0, 1)})
    assert Ledger.from_dict(run.board.progress.ledger).seconds[B.DATA] == 3.0
    run.books.record()
    run.books.left()
    last = run.books.close()
    records = [record for record in run.journal.records() if record["kind"] == "ledger"]
    steps = [record["step"] for record in records]
    assert steps[-1] > max(steps[:-1]), "the tracking server takes a step once, and the last record counts"
    assert records[-1]["values"]["goodput/data_s"] == 3.0 and set(records[-1]["values"]) == {
        *(f"goodput/{bucket.value}_s" for bucket in Bucket), "goodput/share",
    }  # fmt: skip
    assert newest(run.journal.records()) == (last, run.now_s)


@pytest.mark.parametrize("hung", [True, False])
def test_a_hang_and_a_death_are_told_apart(tmp_path, hung):
    run = Run(tmp_path)
    run.begin()
    run.pass_s(10)
    for rank in (0, 1):
        run.hear("exit", rank, clock=run.clock(forward=4))
    run.books.failed([] if hung else [RankExit(rank=1, time_s=run.now_s - 2, signal=9)], hung)
    expected = {B.STEP: 8, B.HANG: 12} if hung else {B.STEP: 16, B.DETECTION: 4}
    assert run.told() == expected
