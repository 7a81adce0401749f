"""Which evaluations are the best, and when training ends because none is better any more."""

from __future__ import annotations

import json
import math

import pytest

from orchestrator.errors import ConfigError
from orchestrator.runtime.selection import figure, judged, selection_of, why_early
from orchestrator.spec import JobSpec, from_dict


def spec_of(keep_best=0, **training):
    values = {"max_steps": 100, "global_batch_size": 8, "micro_batch_size": 2, "eval_interval_steps": 1, **training}
    parts = {name: {"name": "x"} for name in ("model", "data")}
    job = {"workload": {"name": "x", "entrypoint": "m:C"}, **parts, "training": values, "checkpoint": {"keep_best": keep_best}}
    return from_dict(JobSpec, job)


def after(spec, values):
    """The selection after evaluations at steps 1, 2, ..., each time through JSON as in a checkpoint."""
    selection, kept = selection_of(spec), []
    for step, value in enumerate(values, 1):
        if why_early(selection, spec.training):
            break
        selection = judged(selection_of(spec, json.loads(json.dumps(selection.to_dict()))), spec, step, value)
        kept.append(selection.has(step))
    return selection, kept


@pytest.mark.parametrize(
    ("settings", "values", "stops_at"),
    [
        ({}, [3.0, 4.0, 5.0, 6.0], None),
        ({"early_stopping_patience": 2}, [3.0, 2.0, 2.0, 2.5, 1.0], 4),
        ({"early_stopping_patience": 2}, [3.0, 2.0, 2.5, 1.9, 2.0, 1.95], 6),
        ({"early_stopping_patience": 2}, [3.0, None, None, 1.0], 3),
        ({"early_stopping_patience": 2}, [None, None, 1.0], 2),
        ({"early_stopping_patience": 1, "early_stopping_min_delta": 0.5}, [3.0, 2.4, 1.9], 3),
        ({"early_stopping_patience": 2, "early_stopping_min_delta": 0.5}, [3.0, 2.8, 2.4, 2.2, 1.8], None),
        ({"early_stopping_patience": 2, "best_maximize": True}, [0.5, 0.6, 0.6, 0.4, 0.9], 4),
    ],
)
def test_training_ends_when_patience_is_over(settings, values, stops_at):
    spec = spec_of(**settings)
    selection, judged_steps = after(spec, values)
    assert len(judged_steps) == (stops_at or len(values))
    assert bool(why_early(selection, spec.training)) == (stops_at is not None)


def test_the_reason_names_the_metric_and_the_best():
    spec = spec_of(early_stopping_patience=2, early_stopping_min_delta=0.1)
    selection, _ = after(spec, [3.0, 2.0, 1.95, 2.5])
    assert why_early(selection, spec.training) == "stopped early: loss was not better than 2 of step 2 by more than 0.1 in 2 evaluations"
    assert not why_early(selection, spec_of(early_stopping_patience=3).training)  # resumed with more patience it goes on


@pytest.mark.parametrize(
    ("keep_best", "maximize", "values", "kept", "top"),
    [
        (1, False, [3.0, 2.0, 2.0, None, 2.5, 1.0], [True, True, False, False, False, True], [6]),
        (2, False, [3.0, 2.0, 2.5, 9.0, 2.0], [True, True, True, False, True], [2, 5]),
        (2, True, [0.1, 0.3, 0.2, 0.2, 0.4], [True, True, True, False, True], [5, 2]),
    ],
)
def test_the_best_are_known_by_their_steps(keep_best, maximize, values, kept, top):
    selection, found = after(spec_of(keep_best, best_maximize=maximize), values)
    assert found == kept
    assert [step for _, step in selection.top] == top


def test_judged_by_another_metric_it_begins_anew():
    selection, _ = after(spec_of(), [3.0, 2.0])
    saved = selection.to_dict()
    assert selection_of(spec_of(), saved) == selection
    for other in ({"best_metric": "accuracy"}, {"best_maximize": True}):
        assert selection_of(spec_of(**other), saved) == selection_of(spec_of(**other))


def test_a_metric_that_is_not_reported_is_refused_with_the_nearest():
    values = {"loss": 1.0, "accuracy": math.nan}
    assert (figure(values, "loss"), figure(values, "accuracy")) == (1.0, None)
    with pytest.raises(ConfigError, match=r"training.best_metric=acuracy .* reports accuracy, loss\. Did you mean 'accuracy'"):
        figure(values, "acuracy")


@pytest.mark.parametrize(("flag", "kept", "patience"), [("checkpoint.keep_best=1", 1, 0), ("training.early_stopping_patience=3", 0, 3)])
def test_without_evaluations_on_the_way_nothing_can_be_chosen(flag, kept, patience):
    with pytest.raises(ConfigError, match=rf"^{flag} is not possible: allowed is 0 at training.eval_interval_steps=0"):
        spec_of(kept, early_stopping_patience=patience, eval_interval_steps=0)
