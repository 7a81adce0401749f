"""What fits a grace, which notice counts, and what a run that is preempted saves or abandons: real committer, journal and board."""

from __future__ import annotations

import math

import pytest
import torch
from checkpoint_writer import write_checkpoint

from orchestrator.checkpoints.commit import CommitLog
from orchestrator.checkpoints.pieces import StatePiece
from orchestrator.checkpoints.restore_attempts import RestoreAttempts
from orchestrator.job import EndReason, JobState
from orchestrator.paths import Home, JobKeys
from orchestrator.spec import JobSpec, RecoverySpec, from_dict
from orchestrator.storage import MemoryStore
from orchestrator.supervision.chronicle import Chronicle
from orchestrator.supervision.committer import Committer
from orchestrator.supervision.context import RunContext
from orchestrator.supervision.failures import preempted_too_often
from orchestrator.supervision.inbox import AgentDied, FromAgent, Inbox
from orchestrator.supervision.job_run import JobRun
from orchestrator.supervision.preemption import Preemption, SaveCost, judge, measured, notice
from orchestrator.supervision.status_board import StatusBoard
from orchestrator.supervision.tracking_child import TrackingChild
from orchestrator.tracking.journal import Journal

KEYS = JobKeys("job")
COST = SaveCost(stage_s=1.0, num_bytes=1000, bytes_per_s=100.0, commit_s=0.5)


@pytest.mark.parametrize(
    "left, grace_s, fits",
    [
        ({"stages": True, "num_bytes": 1000, "sending_s": 0.0}, 12.6, True),  # 1 + 10 + 0.5, and 1 in reserve
        ({"stages": True, "num_bytes": 1000, "sending_s": 0.0}, 12.4, False),
        ({"stages": False, "num_bytes": 1000, "sending_s": 4.0}, 7.6, True),  # 6 s of it are left
        ({"stages": False, "num_bytes": 1000, "sending_s": 4.0}, 7.4, False),
        ({"stages": False, "num_bytes": 1000, "sending_s": 99.0}, 1.6, True),  # slower than measured: until the grace is over
        ({"stages": False, "num_bytes": 1000, "sending_s": 99.0}, 1.4, False),
        ({"stages": False, "num_bytes": 0, "sending_s": 0.0}, 0.1, True),  # saved: only to leave
        ({"stages": False, "num_bytes": 0, "sending_s": 0.0}, -0.1, False),
    ],
)
def test_what_fits(left, grace_s, fits):
    judgement = judge(COST, **left, grace_s=grace_s)
    assert judgement.fits is fits
    assert judgement.figures["grace_s"] == grace_s and judgement.figures["bytes_per_s"] == 100.0
    assert "0.000 MB/s" in judgement.sentence and f"{max(grace_s, 0):.1f} s are left" in judgement.sentence


def test_what_was_never_measured_fits_until_the_grace_is_over():
    assert judge(SaveCost(), stages=True, num_bytes=0, sending_s=0.0, grace_s=1.1).fits
    late = judge(SaveCost(), stages=True, num_bytes=0, sending_s=0.0, grace_s=0.9)
    assert not late.fits and "not measured yet" in late.sentence


def test_a_rate_is_not_taken_for_more_than_the_uploaders_may_send():
    assert measured(0.1, 1000, 0.5, 0.2, 0.0).bytes_per_s == 2000.0
    assert measured(0.1, 1000, 0.5, 0.2, 500.0).bytes_per_s == 500.0
    assert math.isfinite(measured(0.0, 1000, 0.0, 0.0, 0.0).bytes_per_s)


def test_the_earliest_deadline_counts_and_one_that_names_none_has_the_settings():
    inbox = Inbox()
    assert not inbox.stops
    inbox.preempt(notice("rank 1 got SIGTERM", None, 30.0, 100.0))
    assert inbox.preemption == Preemption("rank 1 got SIGTERM", 130.0) and inbox.stops and not inbox.stops_now()
    inbox.preempt(notice("Ray drains node a", 120.0, 30.0, 101.0))
    inbox.preempt(notice("rank 0 got SIGTERM", None, 30.0, 102.0))
    assert inbox.preemption == Preemption("Ray drains node a", 120.0)


def test_the_budget_of_preemptions_is_its_own():
    assert not preempted_too_often(RecoverySpec(), 10**6)
    assert not preempted_too_often(RecoverySpec(max_preemptions=3), 2)
    assert "3 times (recovery.max_preemptions=3)" in preempted_too_often(RecoverySpec(max_preemptions=3), 3)


class Script:
    """A worker group whose one rank has trained to step 15 and committed step 10, at 1000 bytes in 10 s, when the notice comes.

    At its order it stages step 16, which is in the store `upload_s` seconds later. Each look into the inbox that finds nothing is 0.5 s.
    """

    def __init__(self, store, grace_s, upload_s=5.0, dies=False, begins=True, num_bytes=1000, stop="", resize=False):
        self.now, self.store, self.grace_s, self.upload_s, self.dies, self.begins = 1000.0, store, grace_s, upload_s, dies, begins
        self.num_bytes, self.stop, self.resize = num_bytes, stop, resize
        self.calls, self.inbox, self.due = [], Clocked(self), None

    def start(self, tasks, env, give_up):
        self.epoch = tasks[0]["epoch"]
        self.calls.append([int(key[-17:-5]) for key in tasks[0]["commits"]])
        for key in tasks[0]["commits"][:1]:
            RestoreAttempts(self.store, KEYS, key).note()
        self.say({"type": "hello"})
        if not self.begins:
            self.inbox.preempt(Preemption("a test takes its place", self.now + self.grace_s))
            return
        self.say({"type": "started", "first_step": 1}, *self.staged(10), {**self.saved(10), "upload_s": 10.0})
        self.say({"type": "metrics", "step": 15, "values": {"loss": 1.0}})
        self.inbox.after(self.take_place)

    def take_place(self):
        if self.resize:
            self.inbox.resize("all 2 workers have a place again")
        if self.stop:
            self.inbox.stop(self.stop)
        if self.grace_s:
            self.inbox.preempt(Preemption("a test takes its place", self.now + self.grace_s))

    def order(self, order):
        self.calls.append(order.name)
        self.say(*self.staged(16), *([{"type": "exit", "signal": 9}] if self.dies else []))
        self.due = self.now + self.upload_s

    def look(self):
        """Nothing has come: time passes, in which its agent says that it acts."""
        self.now += 0.5
        self.inbox.arrivals[0] += 1
        if self.due is not None and self.now >= self.due:
            self.due = None
            self.say(self.saved(16), {"type": "done", "step": 16, "stopped": True}, {"type": "exit", "code": 0})

    def kill_ranks(self):
        self.calls.append("kill")
        self.say({"type": "exit", "signal": 9})

    def stop_uploads(self):
        self.calls.append("stop uploads")
        self.due = None

    def missing(self):
        return set()

    def staged(self, step):
        part = {"step": step, "checkpoint": KEYS.checkpoint(step, self.epoch, "u"), "writer": 0, "num_bytes": self.num_bytes}
        return [{"type": "staged", **part, "stage_s": 0.1, "slab": "/dev/shm/x"}]

    def saved(self, step):
        prefix = KEYS.checkpoint(step, self.epoch, "u")
        piece = StatePiece(name="w", role="param", global_shape=(2,), start=0, data=torch.full((2,), float(step)))
        write_checkpoint(self.store, prefix, 0, [piece], {})
        return {
            "type": "saved", "step": step, "checkpoint": prefix, "writer": 0, "job_scalars": {"step": step}, "num_bytes": 1000,
            "upload_s": self.upload_s,
        }  # fmt: skip

    def say(self, *messages):
        self.inbox.put(FromAgent(0, [{"rank": 0, "epoch": self.epoch, "time_s": self.now, **message} for message in messages]))


class Clocked(Inbox):
    """Time passes when it is empty, after what was to be done then."""

    def __init__(self, script):
        super().__init__()
        self._script, self._later = script, []

    def after(self, call):
        self._later.append(call)

    def get(self, timeout_s) -> FromAgent | AgentDied | None:
        if self._queue.empty():
            if self._later:
                self._later.pop(0)()
            else:
                self._script.look()
        return super().get(0.0)


def run(folder, grace_s, number=1, store=None, **script):
    values = {
        "workload": {"name": "x", "entrypoint": "m:C"}, "model": {"name": "x"}, "data": {"name": "x"}, "tracking": {"enabled": False},
        "training": {"max_steps": 50, "global_batch_size": 2, "micro_batch_size": 2},
    }  # fmt: skip
    store = store or MemoryStore()
    group = Script(store, grace_s, **script)
    context = RunContext(job_id="job", run=number, spec=from_dict(JobSpec, values), home=Home(folder), ranks_per_bundle=(1,))
    journal, board = Journal(folder / "journal.jsonl", store, KEYS), StatusBoard("job", 50, "life")
    chronicle = Chronicle(number, board, journal, TrackingChild(context, journal.path))
    committer = Committer(context, store, journal, lambda delay_s: False)
    result = JobRun(context, store, group, group.inbox, chronicle, committer, clock=lambda: group.now).run()
    told = [record for record in journal.records() if record["kind"] == "event" and record["event"] == "preempted"]
    return result, group, told, board


def committed_steps(store):
    return [ref.step for ref in CommitLog(store, KEYS).chain()]


def test_a_save_that_fits_is_waited_for_and_counts(tmp_path):
    result, group, told, board = run(tmp_path, grace_s=13.0)
    assert (result.end_reason, result.step, result.committed_step) == (EndReason.PREEMPTED, 16, 16)
    assert result.message == "a test takes its place; stopped after step 16; back to the queue, goes on from step 16"
    assert [(event["choice"], event["num_bytes"], event["bytes_per_s"]) for event in told] == [("save", 1000, 100.0)]
    assert group.calls == [[], "DRAIN", "stop uploads"]
    assert (board.state, board.progress.preemptions, board.progress.restarts) == (JobState.DRAINING, 1, 0)
    assert committed_steps(group.store) == [16, 10]


def test_a_save_that_does_not_fit_is_abandoned_at_once(tmp_path):
    result, group, told, _ = run(tmp_path, grace_s=10.0)  # 0.1 + 10 + 1 in reserve
    assert (result.end_reason, result.step, result.committed_step) == (EndReason.PREEMPTED, 15, 10)
    assert "the save of step 15 is abandoned: it takes" in result.message and result.message.endswith("goes on from step 10")
    assert [(event["choice"], event["grace_s"], event["step"]) for event in told] == [("abandon", 10.0, 15)]
    assert group.calls == [[], "kill", "stop uploads"]
    assert committed_steps(group.store) == [10]


def test_a_save_that_turns_out_slower_is_abandoned_when_the_grace_is_nearly_over(tmp_path):
    result, group, told, _ = run(tmp_path, grace_s=13.0, upload_s=60.0)
    assert (result.end_reason, result.committed_step) == (EndReason.PREEMPTED, 10)
    assert [(event["choice"], event["step"]) for event in told] == [("save", 15), ("abandon", 16)]
    assert 0 < told[1]["grace_s"] <= 1.6 and group.now < 1013.0
    assert "the save of step 16 is abandoned" in result.message
    assert group.calls[-2:] == ["kill", "stop uploads"]
    assert committed_steps(group.store) == [10]


def test_a_save_that_turns_out_larger_is_abandoned_as_soon_as_it_is_staged(tmp_path):
    store = MemoryStore()
    result, group, told, _ = run(tmp_path, grace_s=13.0, store=store, upload_s=8.0, num_bytes=5000)
    assert (result.committed_step, [event["choice"] for event in told]) == (10, ["save", "abandon"])
    assert told[1]["num_bytes"] == 5000 and group.now < 1002.0


@pytest.mark.parametrize("grace_s, committed", [(13.0, 16), (2.0, 10)])
def test_what_dead_ranks_had_staged_is_committed_if_it_fits(tmp_path, grace_s, committed):
    result, group, _, board = run(tmp_path, grace_s=grace_s, dies=True)
    assert (result.end_reason, result.committed_step) == (EndReason.PREEMPTED, committed), result.message
    assert board.progress.restarts == 0 and "kill" in group.calls
    assert committed_steps(group.store)[0] == committed


def test_a_run_that_has_not_trained_yet_leaves_at_once(tmp_path):
    result, group, told, _ = run(tmp_path, grace_s=30.0, begins=False)
    assert (result.end_reason, result.committed_step, told) == (EndReason.PREEMPTED, None, [])
    assert result.message.startswith("a test takes its place; ") and result.message.endswith("back to the queue, begins anew")
    assert group.now < 1002.0


def test_preemptions_before_the_first_step_say_nothing_of_the_commit(tmp_path):
    store = MemoryStore()
    run(tmp_path, grace_s=10.0, store=store)
    for number in range(2, 5):
        result, group, *_ = run(tmp_path / str(number), grace_s=30.0, begins=False, number=number, store=store)
        assert (result.end_reason, group.calls[0]) == (EndReason.PREEMPTED, [10])
        assert group.calls.index("kill") > 0, "a rank that lives could note its attempt later"
        assert RestoreAttempts(store, KEYS, KEYS.commit(1, 10)).count() == 0


def test_what_the_user_stops_is_cancelled_though_it_is_preempted_too(tmp_path):
    result, _, told, _ = run(tmp_path, grace_s=13.0, stop="drain")
    assert (result.end_reason, result.committed_step) == (EndReason.CANCELLED, 16)
    result, group, told, _ = run(tmp_path / "again", grace_s=8.0, stop="drain")
    assert (result.end_reason, result.committed_step) == (EndReason.CANCELLED, 10)  # the place is lost all the same
    assert [event["choice"] for event in told] == ["abandon"] and group.calls[-1] == "stop uploads"


# for another number of workers


def test_a_job_that_is_resized_saves_however_long_it_takes_and_goes_back_to_the_queue(tmp_path):
    result, group, told, board = run(tmp_path, grace_s=0, resize=True, upload_s=600.0)
    assert (result.end_reason, result.step, result.committed_step) == (EndReason.RESIZED, 16, 16)
    assert result.message == "all 2 workers have a place again; stopped after step 16; back to the queue, goes on from step 16"
    assert group.calls == [[], "DRAIN"] and told == []
    assert (board.state, board.progress.preemptions, board.progress.restarts) == (JobState.DRAINING, 0, 0)
    events = [record for record in Journal(tmp_path / "journal.jsonl", group.store, KEYS).records() if record["kind"] == "event"]
    (resized,) = [record["message"] for record in events if record["event"] == "resized"]
    assert resized == "all 2 workers have a place again: it saves and starts again with them"


def test_a_preemption_counts_before_a_resize_and_the_user_before_both(tmp_path):
    result, *_ = run(tmp_path, grace_s=13.0, resize=True)
    assert (result.end_reason, result.committed_step) == (EndReason.PREEMPTED, 16)
    result, *_ = run(tmp_path / "again", grace_s=0, resize=True, stop="drain")
    assert result.end_reason is EndReason.CANCELLED


def test_what_dies_on_its_way_to_another_size_goes_back_to_the_queue_all_the_same(tmp_path):
    result, group, _, board = run(tmp_path, grace_s=0, resize=True, dies=True)
    assert (result.end_reason, result.committed_step, board.progress.restarts) == (EndReason.RESIZED, 16, 0)
    assert "kill" in group.calls
