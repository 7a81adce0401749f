"""A run whose ranks stop early, from their messages to its result: real committer, journal and board, a worker group without processes."""

from __future__ import annotations

import torch
from checkpoint_writer import write_checkpoint

from orchestrator.checkpoints.pieces import StatePiece
from orchestrator.job import EndReason
from orchestrator.paths import Home, JobKeys
from orchestrator.spec import JobSpec, from_dict
from orchestrator.storage import MemoryStore
from orchestrator.supervision.chronicle import Chronicle
from orchestrator.supervision.committer import Committer
from orchestrator.supervision.context import RunContext
from orchestrator.supervision.job_run import FromAgent, Inbox, JobRun
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


def run(store, folder, number=1, group=Spoken):
    values = {
        "workload": {"name": "x", "entrypoint": "m:C"}, "model": {"name": "x"}, "data": {"name": "x"}, "tracking": {"enabled": False},
        "training": {"max_steps": 50, "global_batch_size": 2, "micro_batch_size": 2, "eval_interval_steps": 10},
        "checkpoint": {"keep_last": 1, "keep_best": 1}, "recovery": {"backoff_s": 0.01},
    }  # fmt: skip
    context = RunContext(job_id="job", run=number, spec=from_dict(JobSpec, values), home=Home(folder), ranks_per_bundle=(1,))
    journal, inbox, board = Journal(folder / "journal.jsonl", store, KEYS), Inbox(), StatusBoard("job", 50, "life")
    chronicle = Chronicle(number, board, journal, TrackingChild(context, journal.path))
    committer = Committer(context, store, journal, lambda delay_s: False)
    result = JobRun(context, group(store, inbox), inbox, chronicle, committer).run()
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


def test_what_was_staged_when_the_ranks_died_is_committed_before_they_start_again(tmp_path):
    groups = []

    def group(store, inbox):
        groups.append(Killed(store, inbox))
        return groups[0]

    result, progress, _ = run(MemoryStore(), tmp_path, group=group)
    assert (result.end_reason, progress.committed_step) == (EndReason.COMPLETED, 10)
    assert groups[0].epochs == [[], [KEYS.commit(1, 10)]]
