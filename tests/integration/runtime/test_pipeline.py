"""Whole ranks in a pipeline: data, loss, norm, evaluation, sample and checkpoints are those of one rank."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent))

from ranks import Group, spec_of

LLAMA = {"workload__entrypoint": "llama_workload:Threes", "training__max_steps": 20, "checkpoint__interval_steps": 10}
LLAMA |= {"training__ema_decay": 0.75, "training__eval_interval_steps": 10}  # evaluation and sample are the average's
TIMES = ("data_time_s", "forward_time_s", "backward_time_s", "optimizer_time_s", "other_time_s")


def job(folder, workers, stages, zero_stage=1):
    parallel = {"parallelism__pipeline_parallel_size": stages, "parallelism__zero_stage": zero_stage}
    return Group(folder, workers, spec_of(folder / "store", resources__num_workers=workers, **LLAMA | parallel))


@pytest.fixture(scope="module")
def one_rank(tmp_path_factory):
    return job(tmp_path_factory.mktemp("one"), 1, 1).run()


@pytest.fixture(scope="module")
def two_stages(tmp_path_factory):
    return job(tmp_path_factory.mktemp("two"), 2, 2, zero_stage=0).run()


def artifact(group, name):
    return group.store.get(f"jobs/job/artifacts/{name}").decode()


def check_same(found, expected, first_step):
    history, whole = found.history(), expected.history()
    assert set(history) == set(range(first_step, 21))
    for step, (loss, lr, norm, ids) in history.items():
        assert (pytest.approx(loss, abs=1e-5), lr, pytest.approx(norm, abs=1e-4), ids) == whole[step]
    evaluated, others = ({row["step"]: row["values"] for row in group.of("evaluated")} for group in (found, expected))
    assert {10, 20} - {first_step - 1} <= evaluated.keys() <= others.keys()
    for step, values in evaluated.items():
        assert values["count"] == others[step]["count"] == 31 * 8
        assert values["loss"] == pytest.approx(others[step]["loss"], abs=1e-5)
    assert evaluated[20]["loss"] - history[20][0] > 0.03  # it lags behind
    assert artifact(found, "sample.txt") == artifact(expected, "sample.txt")


@pytest.mark.slow
def test_two_stages_train_evaluate_and_sample_as_one_rank(one_rank, two_stages):
    check_same(two_stages, one_rank, first_step=1)
    whole = one_rank.history()
    assert whole[1][0] - whole[20][0] > 0.5
    for values in (row["values"] for row in two_stages.of("metrics")):
        assert values["step_time_s"] == pytest.approx(sum(values[name] for name in TIMES))
        assert all(values[name] > 0 for name in TIMES)


@pytest.mark.slow
def test_a_pipeline_goes_on_bit_for_bit_and_with_more_ranks(one_rank, two_stages):
    middle = next(ref.key for ref in two_stages.log.chain() if ref.step == 10)
    again = job(two_stages.folder, 2, 2, zero_stage=0).run([middle])
    assert again.of("restored")[0]["step"] == 10
    assert again.history() == {step: figures for step, figures in two_stages.history().items() if step > 10}
    more = job(two_stages.folder, 4, 2).run([middle])
    check_same(more, one_rank, first_step=11)
