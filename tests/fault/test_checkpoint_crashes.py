"""A crash, a lost answer, a store out of reach or a doubled request at any request of a job's checkpoints: who comes after finds the
newest good commit, bit for bit.

`make campaign NAME=checkpoint_crashes N=...` runs the long form of the same function.
"""

from __future__ import annotations

import checkpoint_trials as trials
import pytest

from orchestrator.checkpoints.commit import _NO_LIMIT, CommitLog

SAMPLE = 240
PARTS = 6


def test_there_are_enough_points_and_every_course_and_kind_is_in_the_sample():
    every, sample = trials.points(), trials.sample(seed=7, count=SAMPLE)
    assert len(every) > 4000
    assert {(point.course, point.kind) for point in every} == {(course, kind) for course in trials.COURSES for kind in trials.KINDS}
    assert len({point.course for point in sample}) == len(trials.COURSES)
    assert {point.kind for point in sample} == set(trials.KINDS)


@pytest.mark.parametrize("part", range(PARTS))
def test_after_a_fault_at_any_request_the_newest_good_commit_is_found(part):
    wrong = {}
    for point in trials.sample(seed=7, count=SAMPLE)[part::PARTS]:
        found = trials.strike(point, seed=part)
        if found:
            wrong[point] = found
    assert not wrong


class CountsWhatIsTooLate(CommitLog):
    """Follows the bases, but counts all that their epochs have committed."""

    def _epochs(self, steps):
        return ((epoch, _NO_LIMIT) for epoch, _ in super()._epochs(steps))


class GoesOnFromTheOldest(CommitLog):
    def chain(self):
        return super().chain()[::-1]


@pytest.mark.parametrize("broken", [CountsWhatIsTooLate, GoesOnFromTheOldest])
def test_the_trials_see_a_protocol_that_is_broken(broken):
    late = [point for point in trials.points() if point.course.twin_at == 9 and point.course.saves == 2 and point.kind == "crash_before"]
    assert not any(trials.strike(point, seed=0) for point in late[::10])
    assert any(trials.strike(point, seed=0, log_class=broken) for point in late[::10])
