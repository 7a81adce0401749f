"""The properties of every plan, and of what becomes of a small cluster over time; `benchmarks/campaign_scheduler.py` is the long form."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from scheduling.forms import code, shrunk
from scheduling.lives import LIVES, Story, head_keeps_its_promise, live, stories
from scheduling.properties import PROPERTIES
from scheduling.strategies import MODES, Moment, moments

MOMENTS = settings(max_examples=150, deadline=None, derandomize=True, phases=[Phase.generate], suppress_health_check=list(HealthCheck))
"""What fails is made small by `shrunk`, which knows what can be left out."""
STORIES = settings(MOMENTS, max_examples=12)


@MOMENTS
@given(moments())
def test_every_property_of_every_plan(moment: Moment):
    for holds in PROPERTIES:
        if any(holds(moment, moment.plan())):
            small = shrunk(moment, lambda other, holds=holds: any(holds(other, other.plan())))
            raise AssertionError(f"{holds.__name__}: {next(holds(small, small.plan()))}\n{code(small)}")


@pytest.mark.parametrize("mode", MODES)
def test_over_time_every_property_of_every_plan_and_of_what_comes_of_it(mode: str):
    @STORIES
    @given(stories(mode))
    def check(told: Story):
        life = live(told, check=True)
        assert not life.found + [f"{holds.__name__}: {found}" for holds in LIVES for found in holds(told, life)]

    check()


@pytest.mark.parametrize("mode", ["fifo", "batch"])
def test_with_exact_estimates_the_head_starts_no_later_than_it_was_promised(mode: str):
    @STORIES
    @given(stories(mode, calmly=True))
    def check(told: Story):
        assert not list(head_keeps_its_promise(told, live(told)))

    check()


@STORIES
@given(stories())
def test_planning_more_often_changes_nothing(told: Story):
    assert live(told, step_s=3700.0).goes_as(live(told))


@STORIES
@given(stories())
def test_a_controller_that_forgets_everything_decides_the_same(told: Story):
    assert live(told, forget=True).goes_as(live(told))
