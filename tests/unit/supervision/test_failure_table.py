"""The right end reason, culprit and decision for labelled failures."""

from __future__ import annotations

import pytest
from failure_table import cases

HELD_OUT = cases("failure_cases_held_out")
ALL = [*cases("failure_cases"), *HELD_OUT]
LEAST_SHARE = 0.98


def wrong(among):
    """(id, found, right) of the cases that are decided wrongly."""
    return [(case.id, found, case.right) for case in among if (found := case.found()) != case.right]


@pytest.mark.parametrize("among", [ALL, HELD_OUT], ids=["all", "held out"])
def test_nearly_all_failures_are_diagnosed_and_answered_rightly(among):
    mistakes = wrong(among)
    print(f"{len(among) - len(mistakes)} of {len(among)} right", *mistakes, sep="\n")
    assert len(mistakes) <= (1 - LEAST_SHARE) * len(among), mistakes


def test_every_case_is_a_case_of_its_own():
    assert len(ALL) >= 120
    assert len({case.id for case in ALL}) == len(ALL)
