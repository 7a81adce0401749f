"""The progress clock: what a rank did with its time adds up, also for who reads it after the rank's death."""

from __future__ import annotations

import os
import signal

from hypothesis import given
from hypothesis import strategies as st

from orchestrator.runtime.link import Phase, ProgressClock


def test_what_passes_between_two_ticks_belongs_to_the_phase_that_is_left(tmp_path):
    now = [1_000]
    agents = ProgressClock(tmp_path / "clock", create=True, now_ns=lambda: now[0])
    ranks = ProgressClock(tmp_path / "clock", now_ns=lambda: now[0])
    for passed, phase in ((5, Phase.START), (7, Phase.DATA), (11, Phase.FORWARD), (13, Phase.FORWARD), (17, Phase.END)):
        now[0] += passed
        ranks.tick(1, phase)
    now[0] += 1_000_000
    for spent in (agents.spent(), ranks.spent()):
        assert (spent.created_ns, spent.ticked_ns, spent.phase) == (1_000, 1_053, Phase.END)
        known = {phase: spent.by_phase_ns[phase] for phase in Phase if spent.by_phase_ns[phase]}
        assert known == {Phase.START: 5 + 7, Phase.DATA: 11, Phase.FORWARD: 13 + 17}


@given(st.lists(st.tuples(st.integers(0, 10**12), st.sampled_from(Phase), st.integers(0, 9)), max_size=50))
def test_the_phases_add_up_to_the_time_of_the_last_tick(tmp_path_factory, ticks):
    now = [7]
    clock = ProgressClock(tmp_path_factory.mktemp("clock") / "clock", create=True, now_ns=lambda: now[0])
    for passed, phase, step in ticks:
        now[0] += passed
        clock.tick(step, phase)
    spent = clock.spent()
    assert sum(spent.by_phase_ns) == spent.ticked_ns - spent.created_ns == sum(passed for passed, _, _ in ticks)
    assert len(spent.by_phase_s) == len(Phase)


def test_the_clock_of_a_killed_rank_is_read_after_its_file_is_gone(tmp_path):
    agents = ProgressClock(tmp_path / "clock", create=True)
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        ranks = ProgressClock(tmp_path / "clock")
        ranks.tick(1, Phase.DATA)
        os.write(write, b"x")
        while True:
            ranks.tick(1, Phase.FORWARD)
    os.read(read, 1)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    (tmp_path / "clock").unlink()
    spent = agents.spent()
    assert spent.phase in (Phase.DATA, Phase.FORWARD)
    assert sum(spent.by_phase_ns) == spent.ticked_ns - spent.created_ns > 0


def test_times_are_told_as_seconds_since_1970(tmp_path):
    now = [1_000_000_000]
    clock = ProgressClock(tmp_path / "clock", create=True, now_ns=lambda: now[0])
    now[0] += 2_000_000_000
    clock.tick(3, Phase.DATA)
    told = clock.spent().to_dict(monotonic_s=10.0, time_s=1_000_000_010.0)
    assert (told["created_s"], told["ticked_s"], told["phase"]) == (1_000_000_001.0, 1_000_000_003.0, Phase.DATA)
    assert told["spent_s"] == [2.0] + [0.0] * (len(Phase) - 1)
