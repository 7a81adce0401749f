"""How long the rest of a job will take, by the pace of its last steps."""

from __future__ import annotations

import pytest

from orchestrator.supervision.status_board import WINDOW, StatusBoard


@pytest.fixture
def board() -> StatusBoard:
    return StatusBoard("job", 100, "life", clock=lambda: 0.0)


def eta_s(board: StatusBoard, step: int, time_s: float) -> float | None:
    board.trained(step, {"loss": 1.0}, time_s)
    return board.progress.eta_s


def test_one_step_is_no_pace_yet(board: StatusBoard) -> None:
    assert eta_s(board, 10, 1000.0) is None


def test_a_steady_pace_tells_the_rest(board: StatusBoard) -> None:
    eta_s(board, 10, 1000.0)
    assert [eta_s(board, step, 1000.0 + 2.0 * (step - 10)) for step in (20, 50, 90)] == [160.0, 100.0, 20.0]


def test_only_the_newest_steps_count(board: StatusBoard) -> None:
    eta_s(board, 1, 0.0)  # and then a pause of an hour
    for step in range(2, WINDOW + 2):
        found = eta_s(board, step, 3600.0 + step)
    assert found == 100 - (WINDOW + 1)


def test_the_time_of_a_restart_is_not_that_of_a_step(board: StatusBoard) -> None:
    eta_s(board, 10, 1000.0)
    eta_s(board, 50, 1040.0)
    board.forget_pace()
    assert eta_s(board, 41, 5000.0) is None
    assert eta_s(board, 42, 5003.0) == 3.0 * 58


def test_steps_that_are_trained_again_are_no_pace(board: StatusBoard) -> None:
    eta_s(board, 50, 1000.0)
    assert eta_s(board, 41, 1010.0) is None


def test_nothing_is_left_at_the_last_step_nor_behind_it(board: StatusBoard) -> None:
    eta_s(board, 98, 1000.0)
    assert [eta_s(board, step, 1000.0 + step) for step in (100, 101)] == [0.0, 0.0]
