"""Every worker-second in one bucket, whatever is known of a life, and nothing counted twice when work is lost."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.runtime.link import Phase
from orchestrator.supervision.accounting import WORK, Bucket, Life, RankClock, account
from orchestrator.supervision.ledger import MAX_MARKS, Ledger, Wait, opened

B = Bucket


def spent(**seconds):
    return [seconds.get(phase.name.lower(), 0.0) for phase in Phase]


def clock(created_s, phase=Phase.FORWARD, ended_s=None, **seconds):
    measured = spent(**seconds)
    return RankClock(created_s=created_s, ticked_s=created_s + sum(measured), phase=phase, spent_s=measured, ended_s=ended_s)


def life(workers=1, **known):
    return Life(**{"epoch": 1, "workers": workers, "base_step": 0, "began_s": 0.0, "is_first": True, **known})


def told(seconds):
    return {bucket: round(passed, 9) for bucket, passed in seconds.items() if passed}


# one life


def test_what_a_clock_tells_is_taken_from_it_and_the_way_there_is_the_start():
    rank = clock(2.0, start=3, data=1, forward=2, backward=2, collective=1, optimizer=1, evaluation=4, checkpoint=2, compile=5)
    expected = {B.START: 5, B.DATA: 1, B.STEP: 6, B.EVALUATION: 4, B.CHECKPOINT: 2, B.COMPILE: 5}
    assert told(account(life(clocks={0: rank}), 0.0, 23.0)) == expected
    now = told(account(life(clocks={0: rank}), 0.0, 25.0))
    assert now == {**expected, B.STEP: 8}, "it is still in the phase that it was in"


def test_a_restore_is_a_part_of_the_way_to_the_first_step():
    rank = clock(0.0, phase=Phase.DATA, start=1, restore=2, data=1)
    assert told(account(life(clocks={0: rank}), 0.0, 4.0)) == {B.START: 3, B.DATA: 1}
    assert told(account(life(clocks={0: rank}, is_first=False), 0.0, 4.0)) == {B.RECOVERY: 3, B.DATA: 1}


def test_a_death_is_detected_then_recovered_from_on_all_ranks():
    """Rank 1 dies at 10; rank 0 ticked last at 9, in a collective that never ends; the supervisor knows at 11, and kills until 12."""
    dead, waiting = clock(0.0, ended_s=10.0, forward=8), clock(0.0, phase=Phase.COLLECTIVE, ended_s=12.0, forward=9)
    found = account(life(2, clocks={0: waiting, 1: dead}, failed_s=10.0, known_s=11.0), 0.0, 15.0)
    assert told(found) == {B.STEP: 20, B.DETECTION: 2, B.RECOVERY: 8}


def test_a_hang_begins_with_each_ranks_last_tick_and_has_no_detection():
    ranks = {0: clock(0.0, ended_s=21.0, forward=10), 1: clock(0.0, ended_s=21.0, data=8)}
    found = account(life(2, clocks=ranks, failed_s=12.0, known_s=20.0, hung=True), 0.0, 22.0)
    assert told(found) == {B.STEP: 10, B.DATA: 8, B.HANG: 22, B.RECOVERY: 4}


def test_ranks_of_an_agent_that_died_have_lost_what_it_did_not_tell():
    rank = clock(0.0, forward=5)
    assert told(account(life(clocks={0: rank}, failed_s=6.0, known_s=6.5), 0.0, 8.0)) == {
        B.STEP: 5, B.LOST: 1, B.DETECTION: 0.5, B.RECOVERY: 1.5,
    }  # fmt: skip
    silent = life(failed_s=6.0, known_s=6.5)
    assert told(account(silent, 0.0, 8.0)) == {B.START: 6, B.DETECTION: 0.5, B.RECOVERY: 1.5}


def test_a_rank_that_is_done_is_idle_and_so_are_all_when_the_run_is_over():
    ranks = {0: clock(0.0, phase=Phase.END, ended_s=6.0, forward=5), 1: clock(0.0, phase=Phase.CHECKPOINT, forward=5)}
    assert told(account(life(2, clocks=ranks, left_s=9.0), 0.0, 10.0)) == {B.STEP: 10, B.CHECKPOINT: 4, B.IDLE: 6}


def test_time_that_a_clock_does_not_account_for_is_unattributed():
    rank = RankClock(created_s=1.0, ticked_s=5.0, phase=Phase.FORWARD, spent_s=spent(forward=3))
    assert told(account(life(clocks={0: rank}), 0.0, 5.0)) == {B.START: 1, B.STEP: 3, B.UNATTRIBUTED: 1}


def test_a_clock_that_was_set_back_makes_nothing_longer_than_it_was():
    rank = RankClock(created_s=-3.0, ticked_s=4.0, phase=Phase.FORWARD, spent_s=spent(data=2, forward=6))
    assert told(account(life(clocks={0: rank}), 0.0, 4.0)) == {B.DATA: 1, B.STEP: 3}


times = st.none() | st.floats(-10, 120)
spans = st.lists(st.floats(0, 40), min_size=len(Phase), max_size=len(Phase))
clocks = st.builds(
    RankClock, created_s=st.floats(-10, 120), ticked_s=st.floats(-10, 120), phase=st.sampled_from(Phase), spent_s=spans, ended_s=times
)


@st.composite
def lives(draw):
    workers = draw(st.integers(1, 3))
    ranks = st.integers(0, workers - 1)
    return life(
        workers, base_step=draw(st.integers(0, 6)), is_first=draw(st.booleans()), clocks=draw(st.dictionaries(ranks, clocks)),
        saves=draw(st.dictionaries(st.integers(0, 6), st.dictionaries(ranks, spans), max_size=3)), training=draw(st.booleans()),
        failed_s=draw(times), known_s=draw(times), hung=draw(st.booleans()), left_s=draw(times),
    )  # fmt: skip


@given(lives(), st.floats(0, 100), st.floats(0, 100))
def test_the_buckets_of_a_life_are_never_negative_and_add_up(one, start, length):
    seconds = account(one, start, start + length)
    assert all(passed >= 0 for passed in seconds.values())
    assert math.fsum(seconds.values()) == pytest.approx((start + length - start) * one.workers, abs=1e-6)


@given(st.lists(st.tuples(lives(), st.floats(0, 30)), max_size=6), st.booleans())
def test_the_ledger_of_any_lives_closes(all_lives, restarted):
    ledger, worker_s = Ledger(until_s=10.0), 0.0
    for one, length in all_lives:
        worker_s += (ledger.until_s + length - ledger.until_s) * one.workers
        ledger = ledger.lived(one, ledger.until_s + length)
        ledger = Ledger.from_dict(ledger.to_dict()) if restarted else ledger
    assert all(passed >= 0 for passed in ledger.seconds.values())
    assert math.fsum(ledger.seconds.values()) == pytest.approx(ledger.worker_s, abs=1e-6)
    assert ledger.worker_s == pytest.approx(worker_s, abs=1e-6)
    assert 0 <= ledger.goodput_share <= 1
    assert len(ledger.marks) <= MAX_MARKS


# work that is lost


def trained(seconds, base_step=0, saves=None, began_s=0.0, workers=1):
    """A life that only made steps."""
    ranks = {rank: clock(began_s, ended_s=began_s + seconds, forward=seconds) for rank in range(workers)}
    made = {step: {rank: spent(forward=at) for rank in range(workers)} for step, at in (saves or {}).items()}
    ended_s = began_s + seconds
    return life(workers, base_step=base_step, clocks=ranks, saves=made, failed_s=ended_s, known_s=ended_s, training=True)


def test_what_was_done_after_the_step_that_is_gone_on_from_is_lost():
    ledger = Ledger(until_s=0.0).lived(trained(10, saves={20: 4, 40: 9}, workers=2), 10.0)
    assert told(ledger.seconds) == {B.STEP: 20}
    again = ledger.lived(trained(5, base_step=40, began_s=10.0, workers=2), 15.0)
    assert told(again.seconds) == {B.STEP: 28, B.LOST: 2}
    damaged = ledger.lived(trained(5, base_step=20, began_s=10.0, workers=2), 15.0)
    assert told(damaged.seconds) == {B.STEP: 18, B.LOST: 12}
    from_the_start = ledger.lived(trained(5, base_step=0, began_s=10.0, workers=2), 15.0)
    assert told(from_the_start.seconds) == {B.STEP: 10, B.LOST: 20}


def test_a_step_that_an_earlier_life_saved_is_still_known():
    ledger = Ledger(until_s=0.0).lived(trained(10, saves={20: 4, 40: 9}), 10.0)
    ledger = ledger.lived(trained(5, base_step=40, saves={60: 3}, began_s=10.0), 15.0)
    ledger = ledger.lived(trained(1, base_step=20, began_s=15.0), 16.0)
    assert told(ledger.seconds) == {B.STEP: 4 + 1, B.LOST: 5 + 1 + 5}
    assert set(ledger.marks) == {0, 20}


def test_a_step_that_not_all_ranks_saved_is_no_mark():
    one = trained(10, workers=2)
    one.saves = {20: {0: spent(forward=4)}}
    ledger = Ledger(until_s=0.0).lived(one, 10.0).lived(trained(1, base_step=20, began_s=10.0, workers=2), 11.0)
    assert told(ledger.seconds) == {B.STEP: 2, B.LOST: 20}


def test_a_job_that_begins_its_ledger_late_has_lost_nothing_before():
    ledger = Ledger(until_s=0.0).lived(trained(3, base_step=500), 3.0)
    assert told(ledger.seconds) == {B.STEP: 3}
    assert set(ledger.marks) == {500}


# runs and supervisors

WAIT = Wait(queued_s=100.0, since_s=100.0, admitted_s=107.0)


def test_a_new_job_has_waited_and_got_its_place():
    ledger = opened(None, run=1, wait=WAIT, heard_s=0.0, now_s=109.0, workers=2)
    assert (told(ledger.seconds), ledger.until_s, ledger.wall_s) == ({B.QUEUE: 14, B.PROVISION: 4}, 109.0, 9.0)


def wait(queued_s, since_s):
    return Wait(queued_s=queued_s, since_s=since_s, admitted_s=118.0)


def before(until_s, closed=False, run=1, training=True):
    return Ledger(until_s=until_s, run=run, lives=1, closed=closed, training=training and not closed)


@pytest.mark.parametrize(
    ("ledger", "run", "waited", "heard_s", "expected"),
    [
        # the supervisor alone was started again
        (before(110.0), 1, WAIT, 112.0, {B.LOST: 10}),
        (before(110.0, training=False), 1, WAIT, 112.0, {B.RECOVERY: 10}),
        # its worker group went with it, and the job was queued again at 115
        (before(110.0), 1, wait(100.0, 115.0), 112.0, {B.LOST: 2, B.DETECTION: 3, B.QUEUE: 3, B.PROVISION: 2}),
        # preempted: its paperwork was done at 110, it was queued again at 111
        (before(110.0, closed=True), 2, wait(100.0, 111.0), 110.0, {B.IDLE: 1, B.QUEUE: 7, B.PROVISION: 2}),
        # it ended at 110 and was resumed at 116
        (before(110.0, closed=True), 2, wait(116.0, 116.0), 110.0, {B.QUEUE: 2, B.PROVISION: 2}),
        # times are not known
        (before(110.0, closed=True), 2, Wait(), 110.0, {}),
    ],
)
def test_what_passed_between_two_supervisors(ledger, run, waited, heard_s, expected):
    found = opened(ledger, run=run, wait=waited, heard_s=heard_s, now_s=120.0, workers=1)
    assert told(found.seconds) == expected
    assert math.fsum(found.seconds.values()) == pytest.approx(found.worker_s)
    assert (found.run, found.closed, found.training) == (run, False, False)


moments = st.floats(0, 200)


@given(st.builds(Wait, queued_s=moments, since_s=moments, admitted_s=moments), moments, moments, st.booleans(), st.integers(1, 2))
def test_no_times_make_a_bucket_negative(waited, until_s, heard_s, closed, run):
    ledger = opened(before(until_s, closed), run=run, wait=waited, heard_s=heard_s, now_s=210.0, workers=3)
    assert all(passed >= 0 for passed in ledger.seconds.values())
    assert math.fsum(ledger.seconds.values()) == pytest.approx(ledger.worker_s, abs=1e-6)
    assert all(not ledger.seconds[bucket] for bucket in WORK if bucket in ledger.seconds)
