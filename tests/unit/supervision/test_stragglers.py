"""Which rank is a straggler, and which only had a slow moment."""

from __future__ import annotations

import statistics

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.supervision.stragglers import Stragglers, Window, medians_of_others

STEP_S = 2.0


def windows(rows, step_s=STEP_S, length=10):
    """One for each row of seconds by rank."""
    return [
        Window(steps=length, seconds=tuple(map(float, row)), step_s=step_s, time_s=100.0 + (number + 1) * length * step_s)
        for number, row in enumerate(rows)
    ]


def found(rows, factor=1.5, steps=50, peers=None, **more):
    judge = Stragglers(peers or [range(len(rows[0]))], factor, steps)
    return [
        (number, finding.rank, finding.is_slow, round(finding.ratio, 2), finding.steps)
        for number, window in enumerate(windows(rows, **more))
        for finding in judge.hear(window)
    ]


CALM, SLOW = [1.0, 1.02, 0.98, 1.0], [1.0, 1.02, 0.98, 1.9]


def test_a_rank_that_stays_slow_is_named_once_and_when_it_is_well_again():
    assert found([CALM] * 4 + [SLOW] * 20 + [CALM] * 20) == [(8, 3, True, 1.9, 50), (28, 3, False, 1.0, 50)]


def test_a_slow_window_blames_nobody():
    assert found(([CALM] * 3 + [SLOW] * 4) * 10) == []


def test_several_are_named_if_most_are_well():
    rows = [[1.0] * 6 + [1.8, 2.4]] * 6
    assert [(rank, is_slow) for _, rank, is_slow, *_ in found(rows)] == [(6, True), (7, True)]


def test_ranks_that_differ_anyway_are_not_stragglers():
    """Experts, or samples of different length: the slowest takes 1.6 times what the others' median takes, as the spread is."""
    assert found([[0.7, 0.85, 1.0, 1.2, 1.6]] * 20) == []


def test_what_costs_the_step_nothing_is_not_told():
    """Only loading is counted there: three times as long, of a hundredth of the step."""
    assert found([[0.01, 0.01, 0.03]] * 20) == []
    assert found([[0.1, 0.1, 0.3]] * 20) != []


def test_short_steps_must_be_slow_for_ten_seconds():
    rows = [[0.01, 0.01, 0.02]] * 60
    (first,) = found(rows, step_s=0.025)
    assert first[0] == 39 and first[4] == 400


def test_rare_windows_are_three_at_least():
    (first,) = found([SLOW] * 10, length=200)
    assert (first[0], first[4]) == (2, 600)


def test_one_of_two_is_named_if_it_was_faster_before():
    calm, slow = [1.0, 1.0], [1.0, 2.0]
    assert found([calm] * 6 + [slow] * 10) == [(10, 1, True, 2.0, 50)]
    assert found([slow] * 20) == [], "which of them is usual is not known"
    assert found([calm] * 6 + [[2.0, 2.1]] * 20) == [], "both are slower: the job has changed"


def test_stages_of_a_pipeline_are_compared_among_themselves():
    rows = [[1.0, 1.0, 1.0, 3.0, 3.0, 3.0]] * 20
    assert found(rows, peers=[range(3), range(3, 6)]) == []
    assert found(rows, peers=[[0], [1]]) == [], "one alone has nobody to be compared with"
    assert [rank for _, rank, *_ in found([[1.0, 1.0, 2.0, 3.0, 3.0, 3.0]] * 20, peers=[range(3), range(3, 6)])] == [2]


@given(st.lists(st.floats(1e-6, 1e3), min_size=2, max_size=12), st.integers(0, 3))
def test_the_median_of_the_others_is_that_of_a_list_without_the_rank(seconds, first):
    peers = range(min(first, len(seconds) - 2), len(seconds))
    assert dict(medians_of_others(seconds, peers)) == {
        rank: statistics.median(seconds[other] for other in peers if other != rank) for rank in peers
    }


def test_a_window_of_many_ranks_is_not_the_square_of_their_number():
    """Comparisons of values, counted."""
    count = 0

    class Counted(float):
        def __lt__(self, other):
            nonlocal count
            count += 1
            return float(self) < float(other)

    world_size = 1000
    dict(medians_of_others([Counted(7919 * rank % world_size) for rank in range(world_size)], range(world_size)))
    assert count < 20 * world_size


def test_a_factor_of_zero_names_none():
    assert found([SLOW] * 20, factor=0) == []


@pytest.mark.parametrize(("world_size", "count"), [(2, 100_000), (3, 100_000), (8, 100_000), (64, 20_000)])
def test_no_alarm_in_a_hundred_thousand_jittered_steps(world_size, count):
    """Ranks differ by a tenth; steps have heavy tails, one in thirty takes 2.5 times as long, and each rank has spells of up to 30 steps in
    which it takes three times as long."""
    rng = np.random.default_rng(world_size)
    own = 0.5 * rng.uniform(0.9, 1.1, world_size) * rng.lognormal(0, 0.2, (count, world_size))
    own *= np.where(rng.random(own.shape) < 1 / 30, 2.5, 1.0)
    for rank in range(world_size):
        for start in np.arange(0, count, 2000) + rng.integers(0, 1900, count // 2000):
            own[start : start + rng.integers(1, 31), rank] *= 3
    step_s = own.max(axis=1) + 0.5
    seconds = np.median(own.reshape(-1, 10, world_size), axis=1).tolist()
    judge = Stragglers([range(world_size)], 1.5, 50)
    for number, (row, whole_s, time_s) in enumerate(zip(seconds, step_s[9::10].tolist(), np.cumsum(step_s)[9::10].tolist(), strict=True)):
        assert judge.hear(Window(steps=10, seconds=tuple(row), step_s=whole_s, time_s=time_s)) == [], number
