from __future__ import annotations

import pytest

from orchestrator.runtime.schedule import learning_rate
from orchestrator.spec import OptimizerSpec, Schedule


@pytest.mark.parametrize("schedule", list(Schedule))
def test_warm_up_reaches_the_asked_rate(schedule):
    spec = OptimizerSpec(lr=1.0, warmup_steps=4, schedule=schedule)
    assert [learning_rate(spec, 10, step) for step in (1, 2, 3, 4)] == [0.25, 0.5, 0.75, 1.0]


@pytest.mark.parametrize("schedule, middle, end", [(Schedule.constant, 1.0, 1.0), (Schedule.linear, 0.6, 0.2), (Schedule.cosine, 0.6, 0.2)])
def test_the_schedule_ends_at_its_share(schedule, middle, end):
    spec = OptimizerSpec(lr=1.0, warmup_steps=10, schedule=schedule, min_lr_ratio=0.2)
    assert learning_rate(spec, 110, 60) == pytest.approx(middle)
    assert learning_rate(spec, 110, 110) == pytest.approx(end)


def test_without_warm_up_the_first_step_has_nearly_the_full_rate():
    assert learning_rate(OptimizerSpec(lr=1.0), 100, 1) == pytest.approx(1.0, abs=1e-3)


def test_a_job_of_one_step():
    assert learning_rate(OptimizerSpec(lr=1.0, min_lr_ratio=0.5), 1, 1) == pytest.approx(0.5)


def test_wsd_stays_at_the_full_rate_until_its_last_share():
    spec = OptimizerSpec(lr=2.0, warmup_steps=10, schedule=Schedule.wsd, decay_share=0.2, min_lr_ratio=0.1)
    rates = {step: learning_rate(spec, 100, step) for step in (11, 50, 80, 81, 90, 100)}
    assert rates[11] == rates[50] == rates[80] == 2.0
    assert rates[81] == pytest.approx(2.0 * (0.1 + 0.9 * 0.95))
    assert rates[90] == pytest.approx(2.0 * 0.55)
    assert rates[100] == pytest.approx(0.2)


def test_wsd_that_decays_from_the_start_is_linear():
    wsd, linear = (OptimizerSpec(lr=1.0, schedule=schedule, decay_share=1.0) for schedule in (Schedule.wsd, Schedule.linear))
    for step in range(1, 21):
        assert learning_rate(wsd, 20, step) == pytest.approx(learning_rate(linear, 20, step))


@pytest.mark.parametrize("schedule", list(Schedule))
def test_it_never_rises_after_warm_up(schedule):
    spec = OptimizerSpec(lr=1.0, warmup_steps=3, schedule=schedule)
    rates = [learning_rate(spec, 50, step) for step in range(3, 51)]
    assert rates == sorted(rates, reverse=True)
