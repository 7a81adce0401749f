"""What a job leaves for people to read: the final evaluation, its report, and what the model says. Written by rank 0."""

from __future__ import annotations

import json
from functools import partial

import torch

from orchestrator.errors import ConfigError
from orchestrator.runtime.initialise import build_whole
from orchestrator.runtime.link import Phase
from orchestrator.runtime.seeding import undisturbed
from orchestrator.runtime.training import Training, put_artifact


def write_final(run: Training) -> None:
    """Evaluation, report and, where the workload offers one, a sample. All ranks together."""
    evaluation = run.last_evaluation
    assert evaluation is not None, "the loop evaluates after the last step"
    run.tick(run.step, Phase.END)
    if run.task.rank == 0:
        figures = {"before": run.evaluation_before, "after": evaluation.values}
        put_artifact(run, "evaluation.json", json.dumps(figures, indent=1).encode())
        report = getattr(run.workload, "report", None)
        for name, content in (report(evaluation.sums, run.dataset) if report else {}).items():
            put_artifact(run, name, content)
    if hasattr(run.workload, "sample"):
        with run.engine.average.swapped_in():
            write_sample(run, "sample.txt")


def write_sample(run: Training, name: str) -> None:
    """What the model now says, as the artifact `name`. All ranks together; training goes on as if it had not been.

    Raises ConfigError for a workload that offers none.
    """
    sample = getattr(run.workload, "sample", None)
    if sample is None:
        kind = type(run.workload).__name__
        raise ConfigError(f"training.sample_at_evaluation=true is not possible: the workload {kind} has no sample().")
    with undisturbed(), torch.no_grad():
        module = run.engine.whole_module(partial(_built, run), run.task.rank == 0)
        if module is not None:
            was_training = module.training
            module.eval()
            put_artifact(run, name, sample(module, run.dataset).encode())
            module.train(was_training)


def _built(run: Training) -> torch.nn.Module:
    return build_whole(run.workload, run.dataset, run.spec.training.seed, run.engine.device, run.engine.dtype)
