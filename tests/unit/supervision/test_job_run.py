"""A run whose ranks stop early, from their messages to its result: real committer, journal and board, a worker group without processes."""

from __future__ import annotations

import signal
import time

import pytest
import torch
from checkpoint_writer import write_checkpoint

from orchestrator.checkpoints.commit import CommitLog
from orchestrator.checkpoints.pieces import StatePiece
from orchestrator.checkpoints.restore_attempts import RestoreAttempts
from orchestrator.job import EndReason
from orchestrator.paths import Home, JobKeys
from orchestrator.spec import JobSpec, from_dict
from orchestrator.storage import MemoryStore
from orchestrator.supervision.chronicle import Chronicle, past
from orchestrator.supervision.committer import Committer
from orchestrator.supervision.context import RunContext
from orchestrator.supervision.inbox import FromAgent, Inbox
from orchestrator.supervision.job_run import JobRun
from orchestrator.supervision.settlement import SETTLE_LIMIT_S
from orchestrator.supervision.silence import SILENCE_LIMIT_S
from orchestrator.supervision.status_board import StatusBoard
from orchestrator.supervision.tracking_child import TrackingChild
from orchestrator.tracking.journal import Journal

KEYS = JobKeys("job")
WHY = "stopped early: loss was not better than 1.5 of step 10 in 2 evaluations"
FIGURES = {10: 1.5, 20: 2.0, 30: 2.5}


class Spoken:
    """A worker group whose one rank saves at each step of `FIGURES` that it has not gone on from, and is done."""

    def __init__(self, store, inbox):
        self.store, self.inbox = store, inbox

    def start(self, tasks, env, give_up):
        (task,) = tasks
        first = max((int(key[-17:-5]) for key in task["commits"]), default=0)
        messages = [message for step in FIGURES if step > first for message in self._saved(task["epoch"], step)]
        messages += [{"type": "done", "step": 30, "stopped": False, "why": WHY}, {"type": "exit", "code": 0}]
        self.inbox.put(FromAgent(0, [{"rank": 0, "epoch": task["epoch"], "time_s": 0.0, **message} for message in messages]))

    def kill_ranks(self):
        pass

    def missing(self):
        return set()

    def _saved(self, epoch, step):
        prefix = KEYS.checkpoint(step, epoch, "u")
        piece = StatePiece(name="w", role="param", global_shape=(2,), start=0, data=torch.full((2,), float(step)))
        write_checkpoint(self.store, prefix, 0, [piece], {})
        scalars = {"step": step, "evaluated": {"metric": "loss", "value": FIGURES[step]}}
        yield {"type": "evaluated", "step": step, "values": {"loss": FIGURES[step]}}
        yield {"type": "saved", "step": step, "checkpoint": prefix, "writer": 0, "job_scalars": scalars}


class Killed(Spoken):
    """Its rank is killed while what it staged at step 10 is on its way, which arrives after the death; in its second life it is done."""

    def __init__(self, store, inbox):
        super().__init__(store, inbox)
        self.epochs = []

    def start(self, tasks, env, give_up):
        self.epoch = tasks[0]["epoch"]
        self.epochs.append(tasks[0]["commits"])
        staged = {"type": "staged", "step": 10, "checkpoint": KEYS.checkpoint(10, self.epoch, "u"), "writer": 0, "slab": "/dev/shm/x"}
        done = [{"type": "done", "step": 50, "stopped": False}, {"type": "exit", "code": 0}]
        self._say([staged, {"type": "exit", "signal": 9}] if len(self.epochs) == 1 else done)

    def kill_ranks(self):
        if len(self.epochs) == 1:
            self._say([message for message in self._saved(self.epoch, 10) if message["type"] == "saved"])

    def _say(self, messages):
        self.inbox.put(FromAgent(0, [{"rank": 0, "epoch": self.epoch, "time_s": 0.0, **message} for message in messages]))


class Outlived(Killed):
    """Two ranks: the first dies when both have staged step 10, and what the second says of it is heard only when that is to be killed."""

    def start(self, tasks, env, give_up):
        self.epoch = tasks[0]["epoch"]
        self.epochs.append(tasks[0]["commits"])
        if len(self.epochs) == 1:
            self._say([{"type": "started", "first_step": 1}, self._part(0), {"type": "exit", "signal": 9}])
        else:
            self._say([{"type": "done", "step": 50, "stopped": False, "rank": rank} for rank in (0, 1)])
            self._say([{"type": "exit", "code": 0, "rank": rank} for rank in (0, 1)])

    def kill_ranks(self):
        if len(self.epochs) == 1:
            self._say([self._part(1)])
            self._say([{"type": "exit", "signal": 9, "rank": 1}])
            (saved,) = [message for message in self._saved(self.epoch, 10) if message["type"] == "saved"]
            self._say([saved, {**saved, "writer": 1, "rank": 1}])

    def _part(self, rank):
        checkpoint = KEYS.checkpoint(10, self.epoch, "u")
        return {"type": "staged", "step": 10, "checkpoint": checkpoint, "writer": rank, "rank": rank, "slab": f"/dev/shm/{rank}"}

    def _saved(self, epoch, step):
        piece = StatePiece(name="v", role="param", global_shape=(2,), start=0, data=torch.full((2,), float(step)))
        write_checkpoint(self.store, KEYS.checkpoint(step, epoch, "u"), 1, [piece], {})
        yield from super()._saved(epoch, step)


class Restoring(Spoken):
    """Its rank notes that it restores and dies of `signal`, twice; then it is done. `noted`: attempts that were known at each start."""

    def __init__(self, store, inbox, signal):
        super().__init__(store, inbox)
        self.signal, self.noted = signal, []

    def start(self, tasks, env, give_up):
        attempts = RestoreAttempts(self.store, KEYS, tasks[0]["commits"][0])
        self.noted.append(attempts.count())
        attempts.note()
        done = [{"type": "done", "step": 50, "stopped": False}, {"type": "exit", "code": 0}]
        messages = [{"type": "hello"}, {"type": "exit", "signal": self.signal}] if len(self.noted) < 3 else done
        self.inbox.put(FromAgent(0, [{"rank": 0, "epoch": tasks[0]["epoch"], "time_s": 0.0, **message} for message in messages]))


class Failing:
    """A worker group whose rank says an error as long as `fails(number of starts, micro batch)`; else it is done."""

    def __init__(self, inbox, fails, **error):
        self.inbox, self.fails, self.error, self.trained = inbox, fails, error, []

    def start(self, tasks, env, give_up):
        (task,) = tasks
        training = task["spec"]["training"]
        self.trained.append((training["micro_batch_size"], training["global_batch_size"]))
        error = {"type": "error", "fingerprint": "f", **self.error}
        done = {"type": "done", "step": 50, "stopped": False}
        fails = self.fails(len(self.trained), training["micro_batch_size"])
        messages = [error, {"type": "exit", "code": 1}] if fails else [done, {"type": "exit", "code": 0}]
        self.inbox.put(FromAgent(0, [{"rank": 0, "epoch": task["epoch"], "time_s": 0.0, **message} for message in messages]))

    def kill_ranks(self):
        pass

    def missing(self):
        return set()


class Seconds(Inbox):
    """When it is empty a second passes, in which something may be said."""

    def __init__(self):
        super().__init__()
        self.now, self.later = 0.0, lambda: None

    def get(self, timeout_s):
        if self._queue.empty():
            self.now += 1.0
            assert self.now < 1000.0, "the run does not end"
            self.later()
        return super().get(0.0)


class Stopped:
    """Two nodes with a rank each; in the first life of the ranks the second node's agent is stopped after 100 s."""

    def __init__(self, inbox):
        self.inbox, self.epoch, self.lost, self.lost_s, inbox.later = inbox, 0, set(), 0.0, self.beat

    def start(self, tasks, env, give_up):
        self.epoch, self.lost = tasks[0]["epoch"], set()
        for rank in (0, 1):
            self.say(rank, {"type": "hello"})
            if self.epoch == 2:
                self.say(rank, {"type": "done", "step": 50, "stopped": False}, {"type": "exit", "code": 0})

    def beat(self):
        self.say(0, {"type": "clocks", "clocks": {}})
        if self.inbox.now < 100.0:
            self.say(1, {"type": "clocks", "clocks": {}})

    def say(self, rank, *messages):
        self.inbox.put(FromAgent(rank, [{"rank": rank, "epoch": self.epoch, "time_s": self.inbox.now, **message} for message in messages]))

    def discard(self, bundle):
        self.lost.add(bundle)
        self.lost_s = self.inbox.now

    def kill_ranks(self):
        self.say(0, {"type": "exit", "signal": 9})

    def missing(self):
        return self.lost

    def peer(self, bundle):
        return 1 - bundle


class Unsaved(Killed):
    """What was staged never comes into the store, though the agent acts."""

    def start(self, tasks, env, give_up):
        self.inbox.later = lambda: self._say([{"type": "clocks", "clocks": {}}])
        super().start(tasks, env, give_up)

    def kill_ranks(self):
        pass


def run(
    store, folder, number=1, group=Spoken, micro_batch_size=2, workers=1, resources=None, bundles=None, inbox=None, clock=time.time,
    **recovery,
):  # fmt: skip
    values = {
        "workload": {"name": "x", "entrypoint": "m:C"}, "model": {"name": "x"}, "data": {"name": "x"}, "tracking": {"enabled": False},
        "training": {"max_steps": 50, "global_batch_size": 8, "micro_batch_size": micro_batch_size, "eval_interval_steps": 10},
        "checkpoint": {"keep_last": 1, "keep_best": 1}, "recovery": {"backoff_s": 0.01, **recovery}, "resources": resources or {},
    }  # fmt: skip
    spec, bundles = from_dict(JobSpec, values), bundles or (workers,)
    context = RunContext(job_id="job", run=number, spec=spec, home=Home(folder), ranks_per_bundle=bundles)
    journal, inbox, board = Journal(folder / "journal.jsonl", store, KEYS), inbox or Inbox(), StatusBoard("job", 50, "life")
    chronicle = Chronicle(number, board, journal, TrackingChild(context, journal.path))
    committer = Committer(context, store, journal, lambda delay_s: False)
    result = JobRun(context, store, group(store, inbox), inbox, chronicle, committer, clock=clock).run()
    tags = [record["values"] for record in journal.records() if record["kind"] == "tags"]
    return result, board.progress, tags


def test_an_early_end_is_a_success_with_its_reason_and_the_best_checkpoint_is_shown(tmp_path):
    store = MemoryStore()
    result, progress, tags = run(store, tmp_path)
    assert (result.end_reason, result.step) == (EndReason.COMPLETED, 30)
    assert result.message == f"trained 30 steps; {WHY}"
    assert (progress.best_step, progress.best_value, progress.committed_step) == (10, 1.5, 30)
    newest = [{"checkpoint.step": step, "checkpoint.newest": KEYS.checkpoint(step, 1, "u")} for step in FIGURES]
    assert tags == [newest[0], {"best.step": 10, "best.loss": 1.5, "best.checkpoint": KEYS.checkpoint(10, 1, "u")}, *newest[1:]]

    _, progress, _ = run(store, tmp_path, number=2)
    assert (progress.best_step, progress.committed_step) == (10, 30)  # read back from the store


def test_an_attempt_with_fewer_workers_commits_what_they_save_and_says_how_many_it_has(tmp_path):
    store = MemoryStore()
    result, _, tags = run(store, tmp_path, resources={"num_workers": 4, "min_workers": 1})
    assert (result.end_reason, result.committed_step) == (EndReason.COMPLETED, 30), result.message
    assert tags[0] == {"workers": "1 of 4"}
    ref, *_ = CommitLog(store, KEYS).chain()
    assert CommitLog(store, KEYS).load_manifest(ref).world_size == 1


@pytest.mark.parametrize(("kind", "workers"), [(Killed, 1), (Outlived, 2)])
def test_what_was_staged_when_the_ranks_died_is_committed_before_they_start_again(tmp_path, kind, workers):
    groups = []

    def group(store, inbox):
        groups.append(kind(store, inbox))
        return groups[0]

    result, progress, _ = run(MemoryStore(), tmp_path, group=group, workers=workers)
    assert (result.end_reason, progress.committed_step) == (EndReason.COMPLETED, 10)
    assert groups[0].epochs == [[], [KEYS.commit(1, 10)]]


@pytest.mark.parametrize(("signal", "noted"), [(signal.SIGKILL, [0, 0, 0]), (signal.SIGSEGV, [0, 1, 2])])
def test_only_what_a_rank_dies_of_by_itself_counts_against_the_commit_that_it_restores(tmp_path, signal, noted):
    store, groups = MemoryStore(), []
    run(store, tmp_path)

    def group(store, inbox):
        groups.append(Restoring(store, inbox, int(signal)))
        return groups[0]

    result, *_ = run(store, tmp_path, number=2, group=group)
    assert (result.end_reason, groups[0].noted) == (EndReason.COMPLETED, noted), result.message


def failing(folder, fails, **error):
    """(result, [(micro batch, global batch) of each attempt], records) of a run that is asked for with a micro batch of 8."""
    groups, store = [], MemoryStore()

    def group(store, inbox):
        groups.append(Failing(inbox, fails, **error))
        return groups[0]

    result, *_ = run(store, folder, group=group, micro_batch_size=8)
    return result, groups[0].trained, list(Journal(folder / "journal.jsonl", store, KEYS).records())


def full(folder, fits):
    return failing(folder, lambda starts, size: size > fits, end_reason="OUT_OF_MEMORY", message="OutOfMemoryError: full")


def test_what_does_not_fit_goes_on_in_half_the_micro_batch_at_the_same_global_batch(tmp_path):
    result, trained, records = full(tmp_path, fits=4)
    assert (result.end_reason, trained) == (EndReason.COMPLETED, [(8, 8), (4, 8)]), result.message
    (restarted,) = [record for record in records if record.get("event") == "restarted"]
    assert restarted["micro_batch_size"] == 4
    assert restarted["message"].startswith("micro batch 4 instead of 8, at the same global batch of 8")


def test_the_micro_batch_is_halved_once_and_then_it_says_what_to_do(tmp_path):
    result, trained, _ = full(tmp_path, fits=2)
    assert (result.end_reason, trained) == (EndReason.OUT_OF_MEMORY, [(8, 8), (4, 8)])
    assert "lowered from 8 to 4 already; what takes less memory: training.activation_checkpointing=full" in result.message


def test_a_broken_machine_is_named(tmp_path):
    error = {"end_reason": "DEVICE_FAULT", "remedy": "OTHER_NODE", "message": "RuntimeError: CUDA error: uncorrectable ECC error"}
    result, trained, records = failing(tmp_path, lambda starts, size: starts == 1, **error)
    assert (result.end_reason, trained) == (EndReason.COMPLETED, [(8, 8), (8, 8)])
    assert [record["message"] for record in records if record.get("event") == "warning"] == [
        "the machine of rank 0 looks broken: drain its node"
    ]


def test_a_users_bug_ends_the_run_with_its_traceback_after_one_retry(tmp_path):
    error = {"end_reason": "USER_ERROR", "message": "ValueError: bad", "traceback": "Traceback ...\nValueError: bad"}
    result, trained, _ = failing(tmp_path, lambda starts, size: True, **error)
    assert (result.end_reason, len(trained)) == (EndReason.USER_ERROR, 2)
    first, *rest = result.message.splitlines()
    assert first == "rank 0: ValueError: bad (it happened 2 times without a new checkpoint in between)"
    assert rest == ["Traceback ...", "ValueError: bad"]


# agents that do not act


def test_an_agent_that_lives_and_says_nothing_is_lost_with_its_node(tmp_path):
    groups, inbox = [], Seconds()

    def group(store, inbox):
        groups.append(Stopped(inbox))
        return groups[0]

    store = MemoryStore()
    result, *_ = run(store, tmp_path, group=group, bundles=(1, 1), inbox=inbox, clock=lambda: inbox.now)
    assert (result.end_reason, groups[0].epoch) == (EndReason.COMPLETED, 2), result.message
    assert 100.0 + SILENCE_LIMIT_S <= groups[0].lost_s <= 102.0 + SILENCE_LIMIT_S
    records = Journal(tmp_path / "journal.jsonl", store, KEYS).records()
    (lost,) = [record for record in records if record.get("event") == "agent_lost"]
    assert lost["message"] == "the agent of node 1 (ranks from 1) was lost: it lives, and has said nothing for 60 s"


def test_an_upload_without_news_is_given_up_though_its_agent_acts(tmp_path):
    inbox = Seconds()
    result, progress, _ = run(MemoryStore(), tmp_path, group=Unsaved, inbox=inbox, clock=lambda: inbox.now)
    assert (result.end_reason, progress.committed_step) == (EndReason.COMPLETED, None), result.message
    assert SETTLE_LIMIT_S < inbox.now < 2 * SETTLE_LIMIT_S


# what another life of the supervisor finds

FAULT = {
    "reason": "OUT_OF_MEMORY", "remedy": "SMALLER_MICRO_BATCH", "fingerprint": "f", "step": 0, "committed_step": -1, "micro_batch_size": 8,
}  # fmt: skip
HALVED = {"kind": "event", "event": "restarted", "run": 1, "fault": FAULT, "micro_batch_size": 4}


def ended(reason):
    return {"kind": "event", "event": "ended", "run": 1, "reason": reason}


@pytest.mark.parametrize(
    "records, run, size, restarts, faults",
    [
        ([], 1, 0, 0, 0),
        ([HALVED], 1, 4, 1, 1),
        ([HALVED, {"kind": "event", "event": "supervisor_lost", "run": 1}], 1, 4, 2, 1),
        ([HALVED, ended("PREEMPTED")], 2, 4, 1, 1),
        ([HALVED, ended("OUT_OF_MEMORY")], 2, 0, 0, 0),
        ([HALVED, ended("CANCELLED")], 2, 0, 0, 0),
    ],
)
def test_a_lowered_micro_batch_stays_until_a_resume_asks_for_another(records, run, size, restarts, faults):
    found = past(records, run)
    assert (found.micro_batch_size, found.restarts, len(found.faults)) == (size, restarts, faults)


# stragglers


class Computing:
    """A worker group of three ranks that say how long they compute: rank 2 for twice as long from the fourth window on. `stays`: they train
    until they are told to leave."""

    def __init__(self, inbox, stays):
        self.inbox, self.stays = inbox, stays

    def start(self, tasks, env, give_up):
        self.epoch = tasks[0]["epoch"]
        self.say(*[{"rank": rank, "type": "hello", "host": f"host-{rank}"} for rank in range(3)])
        self.say({"rank": 2, "type": "device", "gpu": "GPU-2"}, {"rank": 0, "type": "started", "first_step": 1})
        for number in range(30):
            seconds = [1.0, 1.02, 2.0 if number > 2 else 1.0]
            self.say({"rank": 0, "type": "computed", "steps": 10, "step_s": 3.0, "time_s": 30.0 * number, "seconds": seconds})
        if not self.stays:
            self.leave(stopped=False)

    def leave(self, stopped):
        self.say(*[{"rank": rank, "type": "done", "step": 20, "stopped": stopped} for rank in range(3)])
        self.say(*[{"rank": rank, "type": "exit", "code": 0} for rank in range(3)])

    def say(self, *messages):
        self.inbox.put(FromAgent(0, [{"epoch": self.epoch, "time_s": 0.0, **message} for message in messages]))

    def order(self, order):
        self.leave(stopped=True)

    def kill_ranks(self):
        pass

    def stop_uploads(self):
        pass

    def missing(self):
        return set()

def computing(folder, number=1, drains=False, stays=False):
    """(result, STRAGGLER events of all runs in that folder)."""
    store = MemoryStore()
    result, *_ = run(
        store, folder, number, lambda store, inbox: Computing(inbox, stays), workers=3, drain_stragglers=drains
    )  # fmt: skip
    records = Journal(folder / "journal.jsonl", store, KEYS).records()
    return result, [record for record in records if record.get("event") == "straggler"]


def test_a_straggler_is_named_once_and_counts_against_its_machine(tmp_path):
    result, (told,) = computing(tmp_path)
    assert (result.end_reason, result.step) == (EndReason.COMPLETED, 20)
    assert told["message"] == "rank 2 on node host-2 takes 2.0 x the compute time of the others over 50 steps"
    assert (told["incident"], told["node"], told["gpu"], told["drains"]) == ("STRAGGLER", "host-2", "GPU-2", False)


def test_a_straggler_is_drained_once_where_that_is_asked_for(tmp_path):
    result, (told,) = computing(tmp_path, drains=True, stays=True)
    assert result.end_reason is EndReason.PREEMPTED, result.message
    assert told["drains"]
    assert result.message.startswith(f"{told['message']}; stopped after step 20; back to the queue")
    journal = Journal(tmp_path / "journal.jsonl", MemoryStore(), KEYS)
    journal.append("event", event="ended", message="", run=1, reason="PREEMPTED")  # as `close_books` does
    journal.close()
    result, told = computing(tmp_path, number=2, drains=True)
    assert (result.end_reason, [one["drains"] for one in told]) == (EndReason.COMPLETED, [True, False])
