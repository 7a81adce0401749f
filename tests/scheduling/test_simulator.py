"""The simulator's engine beside the slow one of these tests, and beside itself when it plans in every round."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from scheduling.strategies import MODES
from scheduling.traces import close, in_both_engines, in_every_round

QUICK = settings(max_examples=5, deadline=None, derandomize=True, phases=[Phase.generate], suppress_health_check=list(HealthCheck))


@pytest.mark.parametrize("mode", MODES)
def test_skipping_to_the_next_change_is_the_same_as_planning_in_every_round(mode: str):
    @QUICK
    @given(st.randoms(use_true_random=False))
    def check(rng: Random):
        skipping, stepping = in_every_round(rng, mode)
        assert close(skipping, stepping)

    check()


@pytest.mark.parametrize("mode", MODES)
def test_both_engines_let_the_same_jobs_run_at_the_same_times_and_places(mode: str):
    @QUICK
    @given(st.randoms(use_true_random=False))
    def check(rng: Random):
        fast, slow = in_both_engines(rng, mode)
        assert close(fast, slow)

    check()
