"""Whole ranks and the real committer: a job that stops early and keeps its best checkpoint, calm and killed on the way."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent))

from ranks import Group, spec_of

from orchestrator.paths import Home
from orchestrator.spec import JobSpec, from_dict
from orchestrator.supervision.attempt import SavedCheckpoint
from orchestrator.supervision.committer import Committer
from orchestrator.supervision.context import RunContext
from orchestrator.tracking.journal import Journal

MAX_STEPS = 40
CHOOSING = {
    "training__max_steps": MAX_STEPS, "training__eval_interval_steps": 2, "training__early_stopping_patience": 3,
    "training__best_metric": "accuracy", "training__best_maximize": True, "checkpoint__keep_best": 1, "checkpoint__keep_last": 1,
    "checkpoint__grace_minutes": 0,
    "checkpoint__interval_steps": 7,
}  # fmt: skip


class Supervised(Group):
    """Commits and retires as a supervisor does."""

    def __init__(self, folder, job_id, **changes):
        super().__init__(folder, 2, spec_of(folder / "store", resources__num_workers=2, **CHOOSING | changes), job_id)
        spec = from_dict(JobSpec, self.spec)
        context = RunContext(job_id=job_id, run=1, spec=spec, home=Home(folder), ranks_per_bundle=(2,))
        journal = Journal(folder / job_id / "journal.jsonl", self.store, context.keys)
        self.committer = Committer(context, self.store, journal, lambda delay_s: False)

    def begin_epoch(self):
        return self.committer.begin_epoch("test")

    def commit(self, message, scalars):
        self.committer.commit(self.epoch, SavedCheckpoint(message["step"], message["checkpoint"], scalars))

    def accuracies(self):
        return {message["step"]: message["values"]["accuracy"] for message in self.of("evaluated") if message["step"]}

    def kept(self):
        self.committer.close()
        return [ref.step for ref in self.log.chain()]


@pytest.mark.slow
def test_a_killed_job_stops_where_a_calm_one_stops_and_keeps_the_same_checkpoints(tmp_path):
    calm = Supervised(tmp_path, "calm").run()
    (done,) = calm.of("done")
    accuracies = calm.accuracies()
    best = max(accuracies, key=lambda step: (accuracies[step], -step))
    assert (done["step"], done["stopped"]) == (best + 3 * 2, False) and done["step"] < MAX_STEPS
    assert done["why"].startswith(f"stopped early: accuracy was not better than {accuracies[best]:.6g} of step {best} in 3 ")
    assert calm.kept() == [done["step"], best] and calm.committer.best.step == best
    assert best % 7  # no save was due there but for the evaluation

    killed = Supervised(tmp_path, "killed").start()
    killed.wait_for(lambda message: message["type"] == "metrics" and message["step"] == best + 1)
    for process in killed.processes:
        process.kill()
    killed.finish()
    again = Supervised(tmp_path, "killed").run()
    assert 0 < again.of("restored")[0]["step"] <= best + 2
    assert {**killed.history(), **again.history()} == calm.history()
    assert {**killed.accuracies(), **again.accuracies()} == accuracies
    assert again.of("done")[0]["step"] == done["step"] and again.of("done")[0]["why"] == done["why"]
    assert again.kept() == calm.kept() and again.committer.best.value == accuracies[best]

    over = Supervised(tmp_path, "killed").run()
    assert (over.losses(), over.of("done")[0]["why"]) == ({}, done["why"])
    patient = Supervised(tmp_path, "killed", training__early_stopping_patience=4).run()
    assert min(patient.losses()) == done["step"] + 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ({"training__best_metric": "acuracy"}, "reports accuracy, loss. Did you mean 'accuracy'?"),
        ({"training__sample_at_evaluation": True}, "training.sample_at_evaluation=true is not possible: the workload Tiny has no sample()"),
    ],
)
def test_what_the_workload_does_not_offer_is_refused_before_the_first_step(tmp_path, setting, said):
    group = Group(tmp_path, 1, spec_of(tmp_path / "store", **setting)).start()
    assert group.finish() == [1]
    (error,) = group.of("error")
    assert error["end_reason"] == "CONFIGURATION" and said in error["message"]
    assert not group.of("metrics")
