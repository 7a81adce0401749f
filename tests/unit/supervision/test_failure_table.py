"""The right end reason, culprit and decision for labelled failures.

The rules were written from `failure_cases`. Of the 84 held-out ones 73 were right then (78 of the decisions). Of the 50 of the second
set, written after the rules had been made more general for those, 40 were right (43 of the decisions), and of the 28 found in public
reports, decided after another such round, 15 (17 of the decisions). All have made the rules more general since, so that what is shown
here is that they are known, not how the next unheard-of words will fare: those fall to the general rule.
"""

from __future__ import annotations

import pytest
from failure_table import cases

from orchestrator.supervision.failures import Action

SETS = {name: cases(name) for name in ("failure_cases", "failure_cases_held_out", "failure_cases_second", "failure_cases_found")}
ALL = [case for among in SETS.values() for case in among]
LEAST_SHARE = 0.98


@pytest.mark.parametrize("among", [ALL, *SETS.values()], ids=["all", *SETS])
def test_nearly_all_failures_are_diagnosed_and_answered_rightly(among):
    mistakes = [(case.id, found, case.right) for case in among if (found := case.found()) != case.right]
    print(f"{len(among) - len(mistakes)} of {len(among)} right", *mistakes, sep="\n")
    assert len(mistakes) <= (1 - LEAST_SHARE) * len(among), mistakes


def test_every_case_is_a_case_of_its_own():
    assert len(ALL) >= 120
    assert len({case.id for case in ALL}) == len(ALL)


BUGS = [case for case in ALL if case.right[0] == "USER_ERROR" and case.right[2] != "retry later"]


@pytest.mark.parametrize("case", BUGS, ids=lambda case: case.id)
def test_no_bug_of_a_users_is_tried_more_than_once(case):
    verdict = case.verdict()
    assert case.decision(verdict, before=1).action is Action.FAIL
