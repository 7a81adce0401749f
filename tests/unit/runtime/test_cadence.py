"""When a save is due."""

from __future__ import annotations

import math

import pytest

from orchestrator.errors import ConfigError
from orchestrator.runtime.cadence import Ballot, Cadence, least_loss_interval_s
from orchestrator.spec import CheckpointSpec


def test_every_so_many_steps_whatever_the_time():
    cadence = Cadence(CheckpointSpec(interval_steps=3), 1, clock=lambda: 0.0)
    assert [step for step in range(1, 10) if cadence.is_step(step)] == [3, 6, 9]
    assert not cadence.is_time()


def test_the_interval_follows_the_measured_cost_and_the_number_of_nodes():
    now = [0.0]
    cadence = Cadence(CheckpointSpec(interval_steps=0, node_mtbf_hours=1000), 128, clock=lambda: now[0])
    failures_s = 1000 * 3600 / 128
    assert cadence.interval_s == pytest.approx(math.sqrt(2 * 1.0 * failures_s))
    assert not any(cadence.is_step(step) for step in range(1000))
    now[0] = cadence.interval_s
    assert cadence.is_time()
    cadence.saved(0.0)
    assert not cadence.is_time()
    cadence.saved(0.02)  # what the first one cost
    assert cadence.interval_s == pytest.approx(math.sqrt(2 * 0.02 * failures_s))


def test_the_interval_is_where_the_loss_is_least():
    cost_s, failures_s = 5.0, 8 * 3600.0

    def lost(interval_s):  # saves, and half an interval of work per failure; per second
        return cost_s / interval_s + interval_s / 2 / failures_s

    best = least_loss_interval_s(cost_s, failures_s)
    assert lost(best) < min(lost(best * 0.9), lost(best * 1.1))


@pytest.mark.parametrize(("name", "value"), [("interval_steps", -1), ("node_mtbf_hours", 0), ("buffers", 0), ("max_upload_mb_per_s", -1)])
def test_what_cannot_be_is_refused(name, value):
    with pytest.raises(ConfigError, match=f"checkpoint.{name}={value}"):
        CheckpointSpec(**{name: value})


def test_ranks_ask_each_other_every_two_seconds_however_long_a_step_takes():
    now = [100.0]
    ballot = Ballot(7, clock=lambda: now[0])
    assert ballot.is_due(8)
    now[0] += 0.1
    assert ballot.steps_to_next(8) == 20
    ballot.held(8, 20)
    assert not ballot.is_due(27) and ballot.is_due(28)
    now[0] += 20 * 0.25  # slower now
    assert ballot.steps_to_next(28) == 8
    ballot.held(18, 5)  # at a log step before it was due
    assert not ballot.is_due(22) and ballot.is_due(23)
    now[0] += 300.0
    assert ballot.steps_to_next(19) == 1
