"""When ranks that stand still are said to hang, and when not."""

from __future__ import annotations

import random

import pytest

from orchestrator.runtime.link import Phase, Reading
from orchestrator.runtime.pace import Pace
from orchestrator.supervision.watch import PERIOD_S, Stillness, limit_s


def reading(step=7, moves=2, phase=Phase.BACKWARD, ticked_s=0.0, step_p99_s=0.1):
    return Reading(step=step, moves=moves, phase=phase, ticked_s=ticked_s, step_p99_s=step_p99_s)


@pytest.mark.parametrize(
    ("phase", "step_p99_s", "expected"),
    [
        (Phase.FORWARD, 0.1, 4.0),  # 80 % of the five seconds
        (Phase.BACKWARD, 3.0, 12.0),  # of five steps
        (Phase.COLLECTIVE, 0.0, 1800.0),  # how long a step takes is not known yet
        (Phase.COMPILE, 0.1, 1800.0),
        (Phase.CHECKPOINT, 0.1, 1800.0),
        (Phase.START, 0.0, 1800.0),
        (Phase.END, 1000.0, 4000.0),
        (Phase.EVALUATION, 0.1, 48.0),
        (Phase.EVALUATION, 0.0, 1800.0),
    ],
)
def test_how_long_a_rank_may_stand_still(phase, step_p99_s, expected):
    assert limit_s(reading(phase=phase, step_p99_s=step_p99_s), 5.0, 1800.0) == pytest.approx(expected)


def looks(stillness, readings, seconds):
    """The time of the first look that finds a hang; None: none does."""
    for number in range(int(seconds / PERIOD_S)):
        if stillness.look(readings, PERIOD_S):
            return (number + 1) * PERIOD_S
    return None


def test_a_hang_is_known_before_its_time_is_over():
    stillness = Stillness(5.0, 1800.0)
    found = looks(stillness, {0: reading(), 1: reading(moves=1)}, 20)
    assert 4.0 < found <= 4.5
    assert stillness.still_s(0) == pytest.approx(found, abs=PERIOD_S)


def test_as_long_as_one_rank_moves_the_others_may_be_waiting_for_it():
    stillness = Stillness(5.0, 1800.0)
    for number in range(400):
        assert not stillness.look({0: reading(ticked_s=float(number)), 1: reading()}, PERIOD_S)
    assert looks(stillness, {0: reading(ticked_s=399.0), 1: reading()}, 20) is not None


def test_a_rank_in_a_long_phase_keeps_the_others_from_being_blamed():
    """Rank 0 writes what the job leaves, the others wait for it."""
    assert looks(Stillness(5.0, 1800.0), {0: reading(phase=Phase.END), 1: reading()}, 600) is None


def test_a_machine_that_was_frozen_has_not_stood_still():
    stillness = Stillness(5.0, 1800.0)
    assert not stillness.look({0: reading()}, PERIOD_S)
    for _ in range(5):
        assert not stillness.look({0: reading()}, 3600.0)


def test_no_ranks_do_not_hang():
    assert not Stillness(5.0, 1800.0).look({}, PERIOD_S)


def test_no_alarm_in_a_hundred_thousand_jittered_steps():
    """Steps of 0.2 to 8 s with heavy tails, five times what is usual for one in fifty; their lengths are learned as they come."""
    rng = random.Random(5)
    for usual_s, count in ((0.2, 80_000), (1.5, 15_000), (8.0, 5_000)):
        pace, stillness, learned, at, next_look = Pace(), Stillness(5.0, 1800.0), 0.0, 0.0, 0.0
        for step in range(1, count + 1):
            length = usual_s * rng.lognormvariate(0, 0.2) * (2.5 if rng.random() < 0.03 else 1)
            begun, at = at, at + length
            while next_look < at:
                assert not stillness.look({0: reading(step=step, ticked_s=begun, step_p99_s=learned)}, PERIOD_S), (usual_s, step)
                next_look += PERIOD_S
            learned = pace.add(length, step % 10 == 0) or learned


def test_the_pace_is_what_99_of_100_steps_take_at_most():
    pace = Pace()
    told = [pace.add(10.0 if number % 50 == 7 else 1.0, number % 10 == 0) for number in range(1, 601)]
    assert set(told[:9]) == {None}, "before the first log step"
    assert {value for value in told[9:] if value is not None} == {10.0}
    calm = Pace()
    told = [calm.add(10.0 if number == 7 else 1.0, number % 10 == 0) for number in range(1, 301)]
    assert (told[9], told[-1]) == (10.0, 1.0), "one long step in a hundred is forgotten"


def test_a_host_that_runs_ahead_waits_for_its_device_at_log_steps():
    """A step in two hundred is a log step, and as long as all before it."""
    pace, learned = Pace(), None
    for number in range(1, 1001):
        is_log_step = number % 200 == 0
        learned = pace.add(40.0 if is_log_step else 0.01, is_log_step) or learned
        assert learned == (40.0 if number >= 200 else None)
