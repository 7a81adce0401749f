"""Bad numbers: found, by whom, at which samples; and what is no bad number."""

from __future__ import annotations

import math

import pytest
import torch

from orchestrator.errors import LossSpike, NotFinite
from orchestrator.job import EndReason
from orchestrator.runtime.failure import describe
from orchestrator.runtime.guard import LEAST, WINDOW, Guard
from orchestrator.spec import GuardSpec, Precision


def guard(precision=Precision.fp32, **values):
    return Guard(GuardSpec(**values), precision)


def told(it, *arguments):
    with pytest.raises((NotFinite, LossSpike)) as caught:
        it.check(*arguments)
    return caught.value


@pytest.mark.parametrize(
    "loss, norm, votes",
    [
        (math.nan, 1.0, (1, 0)), (math.inf, torch.tensor(math.inf), (1, 1)), (1.0, math.nan, (0, 1)), (-math.inf, None, (1, 0)),
    ],
)  # fmt: skip
def test_a_number_that_is_not_finite_stays_bad_until_it_is_looked_at(loss, norm, votes):
    it = guard()
    it.watch(torch.tensor(loss), norm)
    it.watch(torch.tensor(1.0), torch.tensor(1.0))
    assert it.votes == votes
    it.check(3, 30, 0, 0, 1.0)
    assert it.votes == (0, 0)


def test_finite_numbers_are_not_bad_however_large():
    it = guard()
    for _ in range(1000):
        it.watch(torch.tensor(3e38), torch.tensor(3e38))
    assert it.votes == (0, 0)


def test_in_fp16_a_gradient_beyond_the_format_is_the_loss_scales_to_mend():
    it = guard(Precision.fp16)
    it.watch(torch.tensor(1.0), torch.tensor(math.inf))
    assert it.votes == (0, 0)
    it.watch(torch.tensor(math.nan), torch.tensor(1.0))
    assert it.votes == (1, 0)


def test_all_ranks_raise_the_same_and_those_that_only_heard_of_it_say_so():
    bad, other = guard(), guard()
    for it in (bad, other):
        it.check(5, 50, 0, 0, 1.0)
    bad.watch(torch.tensor(math.nan), None)
    errors = [told(it, 7, 70, 1, 2, math.nan) for it in (bad, other)]
    assert [str(error) for error in errors] == ["the loss is not finite at step 7"] * 2
    assert [error.window for error in errors] == [(50, 70)] * 2
    assert [describe(error, "")["echo"] for error in errors] == [False, True]
    message = describe(errors[0], "")
    assert (message["end_reason"], message["window"]) == (EndReason.NAN.name, [50, 70])


def test_a_gradient_alone_is_every_ranks():
    it = guard()
    it.watch(torch.tensor(1.0), math.inf)
    error = told(it, 7, 70, 0, 2, 1.0)
    assert str(error) == "the loss is finite and the gradient is not at step 7" and not error.echo


def test_a_jump_is_told_from_noise_by_the_losses_before():
    it = guard(spike_factor=10)
    for step in range(LEAST):
        it.check(step, 10 * step, 0, 0, 2.0 + 0.01 * (step % 5))
    it.check(LEAST, 10 * LEAST, 0, 0, 2.1)  # within ten deviations
    error = told(it, LEAST + 1, 10 * LEAST + 10, 0, 0, 4.0)
    assert isinstance(error, LossSpike) and error.window == (10 * LEAST, 10 * LEAST + 10)
    assert "the loss is 4 at step 21, after 2.02 in the median of 21 log steps" in str(error)
    assert describe(error, "")["end_reason"] == EndReason.SPIKE.name


def test_no_jump_without_enough_losses_before_or_where_none_is_asked_for():
    few, off = guard(spike_factor=10), guard()
    for step in range(LEAST - 1):
        few.check(step, step, 0, 0, 2.0)
    few.check(LEAST, LEAST, 0, 0, 1e6)
    for step in range(LEAST + 5):
        off.check(step, step, 0, 0, 2.0)
    off.check(99, 99, 0, 0, 1e6)


def test_what_was_before_a_restart_is_gone_on_with():
    calm, again = guard(spike_factor=10), guard(spike_factor=10)
    for step in range(150):
        calm.check(step, step, 0, 0, 2.0 + 0.01 * (step % 7))
    again.go_on(150, calm.losses)
    assert len(again.losses) == WINDOW
    assert str(told(calm, 150, 160, 0, 0, 9.0)) == str(told(again, 150, 160, 0, 0, 9.0))
