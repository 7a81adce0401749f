"""When an attempt has failed, has ended, and when a checkpoint is whole."""

from __future__ import annotations

import pytest

from orchestrator.supervision.attempt import ECHO_WAIT_S, LEAVE_LIMIT_S, START_LIMIT_S, Attempt


def attempt():
    return Attempt(epoch=1, world_size=2, base_step=0, began_s=0.0, greeted={0, 1})


def message(rank, **fields):
    return {"rank": rank, "time_s": 1.0, **fields}


def test_a_signal_fails_it_at_once():
    it = attempt()
    it.heard_exit(message(1, code=0, signal=9), 1.0)
    assert it.failed(1.0)


def test_an_echo_waits_for_its_cause():
    it = attempt()
    it.heard_error(message(0, end_reason="NETWORK", message="Connection reset by peer", echo=True), 1.0)
    it.heard_exit(message(0, code=1, signal=0), 1.1)  # of the rank that has said why
    assert not it.failed(1.1)
    assert it.failed(1.0 + ECHO_WAIT_S + 0.1)


def test_an_echo_and_its_cause_fail_it_at_once():
    it = attempt()
    it.heard_error(message(0, end_reason="NETWORK", message="Connection reset by peer", echo=True), 1.0)
    it.heard_error(message(1, end_reason="USER_ERROR", message="ValueError: bad"), 1.1)
    assert it.failed(1.1)


def test_a_rank_that_leaves_before_it_is_done_has_failed_even_with_exit_code_0():
    it = attempt()
    it.heard_exit(message(0, code=0, signal=0), 1.0)
    assert it.failed(1.0)


def test_it_is_complete_when_all_are_done_and_gone_however_they_went():
    it = attempt()
    for rank in (0, 1):
        it.heard_done(message(rank, step=5, stopped=False), 1.0)
    assert not it.completed(1.0)
    it.heard_exit(message(0, code=0, signal=0), 1.0)
    it.heard_exit(message(1, code=0, signal=11), 1.0)
    assert it.completed(1.0) and not it.failed(1.0)


def test_ranks_that_do_not_leave_are_not_waited_for():
    it = attempt()
    for rank in (0, 1):
        it.heard_done(message(rank, step=5, stopped=False), 1.0)
    assert it.completed(1.1 + LEAVE_LIMIT_S)


def test_a_checkpoint_is_whole_with_its_last_writer():
    it = attempt()
    assert it.heard_saved(message(1, step=10, checkpoint="p/", writer=1)) is None
    assert it.heard_saved(message(1, step=20, checkpoint="q/", writer=1)) is None
    whole = it.heard_saved(message(0, step=10, checkpoint="p/", writer=0, job_scalars={"position": 7}))
    assert whole is not None
    assert (whole.step, whole.prefix, whole.job_scalars) == (10, "p/", {"position": 7})


@pytest.mark.parametrize("world_size", [1, 2])
def test_a_checkpoint_is_whole_once_though_uploaders_that_were_killed_tell_of_it_again(world_size):
    it = Attempt(epoch=1, world_size=world_size, base_step=0, began_s=0.0)
    told = [it.heard_saved(message(rank, step=10, checkpoint="p/", writer=rank)) for rank in (*range(world_size), *range(world_size))]
    assert [found is not None for found in told] == [False] * (world_size - 1) + [True] + [False] * world_size
    assert it.unsaved() == {}


def test_a_silent_rank_is_given_up():
    it = Attempt(epoch=1, world_size=2, base_step=0, began_s=0.0, greeted={0})
    assert not it.failed(START_LIMIT_S - 1)
    assert it.failed(START_LIMIT_S + 1)


def test_what_all_writers_have_staged_is_on_its_way_until_all_of_it_is_saved():
    it = attempt()
    of = {"step": 5, "checkpoint": "p/"}
    whole_one = [(5, 7, 0.2, 2.0)]
    it.heard_staged({**of, "writer": 0, "num_bytes": 3, "stage_s": 0.2}, 1.0)
    assert it.on_their_way() == [] and it.newest_staged is None and it.unsaved() == {}  # the other rank was killed before
    it.heard_staged({**of, "writer": 1, "num_bytes": 4, "stage_s": 0.1}, 2.0)
    assert [(staged.step, staged.num_bytes, staged.stage_s, staged.since_s) for staged in it.on_their_way()] == whole_one
    assert it.unsaved() == {(5, "p/"): {0, 1}}
    assert it.heard_saved({**of, "writer": 0, "num_bytes": 3, "upload_s": 2.0, "job_scalars": {"step": 5}}) is None
    assert [(staged.step, staged.num_bytes, staged.stage_s, staged.since_s) for staged in it.on_their_way()] == whole_one
    assert it.unsaved() == {(5, "p/"): {1}}
    whole = it.heard_saved({**of, "writer": 1, "num_bytes": 4, "upload_s": 1.0})
    assert whole is not None
    assert whole.cost == {"num_bytes": 7, "upload_s": 2.0, "stage_s": 0.2}
    assert it.on_their_way() == [] and it.unsaved() == {}


def test_what_its_uploader_could_not_store_is_not_waited_for():
    it = attempt()
    of = {"step": 5, "checkpoint": "p/"}
    it.heard_staged({**of, "writer": 0}, 1.0)
    it.heard_staged({**of, "writer": 1}, 1.0)
    it.heard_error(message(1, **of, end_reason="STORAGE", message="no space left"), 1.0)
    assert it.unsaved() == {}
    assert it.failed(1.0)
