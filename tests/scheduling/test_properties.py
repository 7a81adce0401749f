"""The properties of every plan, and of what becomes of a small cluster over time; `benchmarks/campaign_scheduler.py` is the long form."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from scheduling.lives import LIVES, Life, Story, head_keeps_its_promise, live, stories
from scheduling.properties import PROPERTIES, Property
from scheduling.strategies import Moment, moments

MOMENTS = settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
STORIES = settings(MOMENTS, max_examples=15)


@pytest.mark.parametrize("holds", PROPERTIES, ids=lambda holds: holds.__name__)
def test_of_every_plan(holds: Property):
    @MOMENTS
    @given(moments())
    def check(moment: Moment):
        assert not list(holds(moment, moment.plan()))

    check()


@pytest.mark.parametrize("holds", LIVES, ids=lambda holds: holds.__name__)
def test_over_time(holds: Callable[[Story, Life], Iterator[str]]):
    @STORIES
    @given(stories())
    def check(told: Story):
        life = live(told)
        assert not life.found + list(holds(told, life))

    check()


@STORIES
@given(stories())
def test_of_every_plan_that_is_led_to(told: Story):
    assert not live(told, check=True).found


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
    assert live(told, step_s=3700.0).log == live(told).log


@STORIES
@given(stories())
def test_a_controller_that_forgets_everything_decides_the_same(told: Story):
    assert live(told, forget=True).log == live(told).log
