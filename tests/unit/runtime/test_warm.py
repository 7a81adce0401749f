"""The warm process with ranks that only sleep: what SIGTERM does, and what its end."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from patience import LIMIT_S, wait_until

from orchestrator.runtime.node_memory import NodeMemory
from orchestrator.runtime.task import RankTask
from orchestrator.runtime.warm import POLL_S
from orchestrator.runtime.warm_place import call_newest, is_newest

IDLE_LIMIT_S = 5.0
"""Longer than it takes to connect to one that has just started."""


def sleeper(task):
    """What the ranks run: until SIGTERM, of which they leave a word."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    print("asleep", flush=True)
    signal.sigwait({signal.SIGTERM})
    print("told", flush=True)
    return 3


class Agent:
    def __init__(self, folder, *options):
        self.folder, self.log, self.clock, self.slab = folder, folder / "rank.log", folder / "clock", folder / "job-0-1.slab"
        self.watched = subprocess.Popen(["sleep", "600"])
        command = [sys.executable, "-m", "orchestrator.runtime.warm", "--socket", str(folder / "s"), "--watch-pid", str(self.watched.pid)]
        environment = {**os.environ, "PYTHONPATH": f"{Path(__file__).parent}:{Path(__file__).parents[2]}"}
        self.warm = subprocess.Popen([*command, "--entry", "test_warm:sleeper", *options], env=environment, cwd=folder)
        self.path = folder / "s"
        self.wait(self.path.exists)
        self.connect()

    def connect(self):
        self.connection = socket.socket(socket.AF_UNIX)
        self.connection.settimeout(LIMIT_S)
        self.wait(lambda: self.connection.connect_ex(str(self.path)) == 0)
        self.lines = self.connection.makefile()

    def fork(self):
        """Returns the rank's pid when it sleeps."""
        self.log.touch()
        self.clock.touch()
        request = {"op": "fork", "rank": 0, "task": self.task(), "env": {}, "log": str(self.log)}
        self.connection.sendall(json.dumps(request).encode() + b"\n")
        started = json.loads(self.lines.readline())
        assert started["op"] == "started", started
        self.wait(lambda: "asleep" in self.log.read_text())
        return started["pid"]

    def task(self):
        return RankTask(
            job_id="job", run=1, epoch=1, spec={"resources": {"threads_per_worker": 1}}, rank=0, world_size=1, local_rank=0,
            local_world_size=1, master_address="", master_port=0, agent_socket="", clock=str(self.clock), cache_dir="",
            slab_folder=str(self.folder), slab_stem="job-0",
        ).to_dict()  # fmt: skip

    def kill(self):
        """Its rank; returns when its end is told."""
        self.connection.sendall(json.dumps({"op": "kill", "rank": None, "signal": int(signal.SIGKILL)}).encode() + b"\n")
        assert json.loads(self.lines.readline())["signal"] == 9

    @staticmethod
    def wait(condition):
        wait_until(condition)

    def close(self):
        self.connection.close()
        for process in (self.warm, self.watched):
            process.kill()
            process.wait()


@pytest.fixture
def agent(tmp_path):
    it = Agent(tmp_path)
    yield it
    it.close()


def test_sigterm_is_passed_on_and_it_leaves_when_its_ranks_have(agent):
    pid = agent.fork()
    agent.warm.send_signal(signal.SIGTERM)
    assert json.loads(agent.lines.readline()) == {"op": "exit", "rank": 0, "pid": pid, "code": 3, "signal": 0}
    assert agent.log.read_text() == "asleep\ntold\n"
    assert agent.lines.readline() == ""
    assert agent.warm.wait(LIMIT_S) == 0


def test_without_ranks_it_leaves_at_sigterm(agent):
    pid = agent.fork()
    agent.connection.sendall(json.dumps({"op": "kill", "rank": None, "signal": int(signal.SIGKILL)}).encode() + b"\n")
    assert json.loads(agent.lines.readline()) == {"op": "exit", "rank": 0, "pid": pid, "code": 0, "signal": 9}
    agent.warm.send_signal(signal.SIGTERM)
    assert agent.warm.wait(LIMIT_S) == 0


def test_its_agent_hears_of_its_end_when_its_ranks_and_their_clocks_are_gone(agent):
    pid = agent.fork()
    agent.watched.kill()
    agent.watched.wait()
    assert agent.lines.readline() == ""
    assert not psutil.pid_exists(pid) and not agent.clock.exists()


TRACER = """
import ctypes, sys
assert ctypes.CDLL(None).ptrace(0x4206, int(sys.argv[1]), None, None) == 0  # PTRACE_SEIZE
print("traced", flush=True)
sys.stdin.read()
"""


def test_a_rank_that_the_kernel_does_not_let_go_of_holds_up_nobody_else(agent):
    """It is dead, and its parent is not told as long as somebody else traces it."""
    pid = agent.fork()
    tracer = subprocess.Popen([sys.executable, "-c", TRACER, str(pid)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert tracer.stdout.readline() == "traced\n"
        agent.connection.shutdown(socket.SHUT_WR)
        agent.wait(lambda: psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)
        stuck, stuck_lines = agent.connection, agent.lines
        agent.connect()
        agent.fork()
        assert psutil.pid_exists(pid)
        tracer.communicate()
        assert stuck_lines.readline() == "", "the end of the connection says that its ranks are gone"
        assert not psutil.pid_exists(pid) and agent.clock.exists(), "the clock is the next rank's"
        stuck.close()
    finally:
        tracer.kill()
        tracer.communicate()


HOLDER = """
import json, socket, sys
connection = socket.socket(socket.AF_UNIX)
connection.connect(sys.argv[1])
connection.sendall(sys.argv[2].encode() + b"\\n")
print(connection.makefile().readline(), end="", flush=True)
sys.stdin.read()
connection.close()
print("closed", flush=True)
sys.stdin = open(sys.argv[3])
sys.stdin.read()
"""


class OtherAgent:
    """In a process of its own; it forks one rank."""

    def __init__(self, agent):
        agent.slab.touch()
        agent.slab.with_suffix(".json").touch()
        os.mkfifo(gate := agent.folder / "gate")
        request = {"op": "fork", "rank": 0, "task": agent.task(), "env": {}, "log": str(agent.log)}
        command = [sys.executable, "-c", HOLDER, str(agent.path), json.dumps(request), str(gate)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.gate = gate
        assert json.loads(self.process.stdout.readline())["op"] == "started"

    def close(self):
        self.process.kill()
        self.process.wait()
        self.process.stdin.close()
        self.process.stdout.close()


@pytest.fixture
def other(agent):
    it = OtherAgent(agent)
    yield it
    it.close()


@pytest.mark.parametrize("how", ["it is killed", "with the node's raylet"])
def test_what_an_agent_that_is_gone_kept_in_memory_goes_and_what_others_keep_stays(agent, other, how):
    others = [agent.folder / "job-1-1.slab", agent.folder / "other-0-1.slab"]
    for path in others:
        path.touch()
    if how == "with the node's raylet":
        agent.watched.kill()
        agent.watched.wait()
    other.process.kill()
    other.process.wait()
    agent.wait(lambda: not agent.slab.exists() and not agent.slab.with_suffix(".json").exists())
    assert all(path.exists() for path in others)


def test_what_an_agent_keeps_in_memory_stays_while_its_process_lives(agent, other):
    other.process.stdin.close()
    assert other.process.stdout.readline() == "closed\n"
    time.sleep(2 * POLL_S)
    assert agent.slab.exists()
    other.process.kill()
    other.process.wait()
    agent.wait(lambda: not agent.slab.exists())


def test_slabs_that_were_made_after_their_agent_went_are_the_next_ones(tmp_path):
    memory, process = NodeMemory(), subprocess.Popen(["sleep", "600"])
    owner = memory.owner(process.pid)
    memory.used(owner, {"slab_folder": str(tmp_path), "slab_stem": "job-0"})
    (tmp_path / "job-0-0.slab").touch()
    time.sleep(0.05)
    memory.went(owner)
    time.sleep(0.05)
    (tmp_path / "job-0-1.slab").touch()
    process.kill()
    process.wait()
    memory.clear()
    assert [path.name for path in tmp_path.iterdir()] == ["job-0-1.slab"]


def test_one_of_older_code_leaves_when_its_last_agent_has(agent):
    agent.fork()
    call_newest(agent.path.with_name("s-newer"))
    agent.kill()
    agent.fork()  # the job goes on with the code that it began with
    agent.kill()
    assert agent.warm.poll() is None
    agent.connection.close()
    agent.lines.close()
    assert agent.warm.wait(LIMIT_S) == 0
    assert not agent.path.exists()


def test_one_that_is_asked_for_again_stays(agent):
    other = agent.path.with_name(agent.path.name + "-other")
    assert is_newest(agent.path)
    call_newest(other)
    assert is_newest(other) and not is_newest(agent.path)
    call_newest(agent.path)
    agent.connection.close()
    with pytest.raises(subprocess.TimeoutExpired):
        agent.warm.wait(3 * POLL_S)


def test_one_that_has_grown_leaves_when_it_has_no_ranks_and_not_before_it_had_any(tmp_path):
    agent = Agent(tmp_path, "--max-growth-mb=-1000")
    try:
        with pytest.raises(subprocess.TimeoutExpired):
            agent.warm.wait(2 * POLL_S)
        agent.fork()
        with pytest.raises(subprocess.TimeoutExpired):
            agent.warm.wait(2 * POLL_S)
        agent.kill()
        assert agent.lines.readline() == ""  # its agent asks another one for the next ranks
        assert agent.warm.wait(LIMIT_S) == 0
        assert not agent.path.exists()
    finally:
        agent.close()


def test_one_with_a_jobs_own_variables_leaves_when_no_agent_has_been_there_for_a_while(tmp_path):
    agent = Agent(tmp_path, f"--idle-limit-s={IDLE_LIMIT_S}")
    try:
        with pytest.raises(subprocess.TimeoutExpired):
            agent.warm.wait(IDLE_LIMIT_S + 2 * POLL_S)
        agent.connection.close()
        agent.lines.close()
        assert agent.warm.wait(LIMIT_S) == 0
        assert not agent.path.exists()
    finally:
        agent.close()
