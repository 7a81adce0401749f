"""A run whose ranks stop early, from their messages to its result: real committer, journal and board, a worker group without processes."""

from __future__ import annotations

import torch

from orchestrator.checkpoints.pieces import StatePiece
from orchestrator.checkpoints.write import write_checkpoint
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

    def _saved(self, epoch, step):
        prefix = KEYS.checkpoint(step, epoch, "u")
        piece = StatePiece(name="w", role="param", global_shape=(2,), start=0, data=torch.full((2,), float(step)))
        write_checkpoint(self.store, prefix, 0, [piece], {})
        scalars = {"step": step, "evaluated": {"metric": "loss", "value": FIGURES[step]}}
        yield {"type": "evaluated", "step": step, "values": {"loss": FIGURES[step]}}
        yield {"type": "saved", "step": step, "checkpoint": prefix, "writer": 0, "job_scalars": scalars}


def run(store, folder, number=1):
    values = {
        "workload": {"name": "x", "entrypoint": "m:C"}, "model": {"name": "x"}, "data": {"name": "x"}, "tracking": {"enabled": False},
        "training": {"max_steps": 50, "global_batch_size": 2, "micro_batch_size": 2, "eval_interval_steps": 10},
        "checkpoint": {"keep_last": 1, "keep_best": 1},
    }  # fmt: skip
    context = RunContext(job_id="job", run=number, spec=from_dict(JobSpec, values), home=Home(folder), ranks_per_bundle=(1,))
    journal, inbox, board = Journal(folder / "journal.jsonl", store, KEYS), Inbox(), StatusBoard("job", 50, "life")
    chronicle = Chronicle(number, board, journal, TrackingChild(context, journal.path))
    committer = Committer(context, store, journal, lambda delay_s: False)
    result = JobRun(context, Spoken(store, inbox), inbox, chronicle, committer).run()
    tags = [record["values"] for record in journal.records() if record["kind"] == "tags"]
    return result, board.progress, tags


def test_an_early_end_is_a_success_with_its_reason_and_the_best_checkpoint_is_shown(tmp_path):
    store = MemoryStore()
    result, progress, tags = run(store, tmp_path)
    assert (result.end_reason, result.step) == (EndReason.COMPLETED, 30)
    assert result.message == f"trained 30 steps; {WHY}"
    assert (progress.best_step, progress.best_value, progress.committed_step) == (10, 1.5, 30)
    assert tags == [{"best.step": 10, "best.loss": 1.5, "best.checkpoint": KEYS.checkpoint(10, 1, "u")}]

    _, progress, _ = run(store, tmp_path, number=2)
    assert (progress.best_step, progress.committed_step) == (10, 30)  # read back from the store
