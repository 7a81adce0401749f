"""A clock that strikes: at the step and phase that were planned, or as soon after that as the rank comes by, and each fault once."""

from __future__ import annotations

import json
import os
import socket

import pytest

from orchestrator.chaos.claims import Claims
from orchestrator.chaos.plan import Fault, Kind
from orchestrator.runtime.chaos import SLOW_STEPS, StrikingClock, acts_of
from orchestrator.runtime.link import AgentLink, Phase, ProgressClock
from orchestrator.storage import MemoryStore


def fault(kind, step, phase="forward", number=1):
    return Fault(name=f"{kind.value}-{number}", kind=kind, step=step, phase=phase, rank=1)


@pytest.fixture
def agent(tmp_path):
    """(link of rank 1, what the agent has read from it)."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(tmp_path / "agent.sock"))
        listener.listen()
        link = AgentLink(tmp_path / "agent.sock", rank=1)
        connection, _ = listener.accept()
        with connection:
            yield link, lambda: [json.loads(line) for line in connection.recv(1 << 16).splitlines()]
        link.close()


def striking(tmp_path, link, faults, acts, store=None, slow_s=0.0):
    path = tmp_path / "clock"
    ProgressClock(path, create=True).close()
    return StrikingClock(path, faults, Claims(store or MemoryStore(), "job"), link, 1, acts, slow_s)


def test_it_strikes_at_the_phase_when_the_step_is_reached_and_says_so_first(tmp_path, agent):
    link, read = agent
    struck, store = [], MemoryStore()
    acts = {Kind.KILL_RANK: lambda: struck.append((Claims(store, "job").done(), clock.read().step, clock.read().phase, read()))}
    clock = striking(tmp_path, link, [fault(Kind.KILL_RANK, 5)], acts, store)
    for step, phase in ((4, Phase.FORWARD), (5, Phase.DATA)):
        clock.tick(step, phase)
    assert struck == []
    clock.tick(5, Phase.FORWARD)
    clock.tick(6, Phase.FORWARD)
    ((claimed, step, phase, (told,)),) = struck
    assert (claimed, step, phase) == ({"kill_rank-1"}, 5, Phase.FORWARD)
    assert (told["type"], told["fault"], told["step"]) == ("chaos", "kill_rank-1", 5)
    assert told["text"] == "kill_rank-1 by rank 1 at forward of step 5"


def test_a_phase_that_comes_later_is_waited_for_and_what_was_done_before_is_left(tmp_path, agent):
    struck, store = [], MemoryStore()
    faults = [fault(Kind.KILL_RANK, 5, "checkpoint", number) for number in (1, 2)]
    Claims(store, "job").claim(faults[0], 5, "an earlier life")
    clock = striking(tmp_path, agent[0], faults, {Kind.KILL_RANK: lambda: struck.append(clock.read().step)}, store)
    for step in range(1, 21):
        clock.tick(step, Phase.FORWARD)
        if step % 10 == 0:
            clock.tick(step, Phase.CHECKPOINT)
    assert struck == [10] and Claims(store, "job").done() == {"kill_rank-1", "kill_rank-2"}


def test_what_a_rank_cannot_do_is_left_to_others(tmp_path, agent):
    store = MemoryStore()
    clock = striking(tmp_path, agent[0], [fault(Kind.KILL_RAYLET, 1)], acts_of(os.getpid()), store)
    clock.tick(1, Phase.FORWARD)
    assert not Claims(store, "job").done(), "nothing here runs on a raylet"


def test_a_slow_rank_is_late_in_each_of_the_next_steps(tmp_path, agent, monkeypatch):
    clock, late = striking(tmp_path, agent[0], [fault(Kind.SLOW_RANK, 3)], {}, slow_s=0.02), []
    monkeypatch.setattr("time.sleep", lambda pause_s: late.append((step, pause_s)))
    for step in range(1, 20):
        for phase in (Phase.DATA, Phase.FORWARD):
            clock.tick(step, phase)
    assert late == [(step, 0.02) for step in range(4, 4 + SLOW_STEPS)]


def test_a_rank_knows_the_process_that_listens(agent):
    assert agent[0].agent_pid == os.getpid()
