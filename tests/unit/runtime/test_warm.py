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

from orchestrator.runtime.node_memory import NodeMemory
from orchestrator.runtime.task import RankTask
from orchestrator.runtime.warm import POLL_S
from orchestrator.runtime.warm_place import call_newest, is_newest


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
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
        self.warm = subprocess.Popen([*command, "--entry", "test_warm:sleeper", *options], env=environment, cwd=folder)
        self.path = folder / "s"
        self.wait(self.path.exists)
        self.connection = socket.socket(socket.AF_UNIX)
        self.wait(lambda: self.connection.connect_ex(str(self.path)) == 0)
        self.lines = self.connection.makefile()

    def fork(self):
        """Returns the rank's pid when it sleeps."""
        self.log.touch()
        self.clock.touch()
        for path in (self.slab, self.slab.with_suffix(".json")):
            path.touch()
        task = RankTask(
            job_id="job", run=1, epoch=1, spec={"resources": {"threads_per_worker": 1}}, rank=0, world_size=1, local_rank=0,
            local_world_size=1, master_address="", master_port=0, agent_socket="", clock=str(self.clock), cache_dir="",
            slab_folder=str(self.folder), slab_stem="job-0",
        )  # fmt: skip
        request = {"op": "fork", "rank": 0, "task": task.to_dict(), "env": {}, "log": str(self.log)}
        self.connection.sendall(json.dumps(request).encode() + b"\n")
        started = json.loads(self.lines.readline())
        assert started["op"] == "started", started
        self.wait(lambda: "asleep" in self.log.read_text())
        return started["pid"]

    def kill(self):
        """Its rank; returns when its end is told."""
        self.connection.sendall(json.dumps({"op": "kill", "rank": None, "signal": int(signal.SIGKILL)}).encode() + b"\n")
        assert json.loads(self.lines.readline())["signal"] == 9

    @staticmethod
    def wait(condition):
        limit = time.monotonic() + 30
        while not condition():
            assert time.monotonic() < limit
            time.sleep(0.01)

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
    assert agent.warm.wait(20) == 0


def test_without_ranks_it_leaves_at_sigterm(agent):
    pid = agent.fork()
    agent.connection.sendall(json.dumps({"op": "kill", "rank": None, "signal": int(signal.SIGKILL)}).encode() + b"\n")
    assert json.loads(agent.lines.readline()) == {"op": "exit", "rank": 0, "pid": pid, "code": 0, "signal": 9}
    agent.warm.send_signal(signal.SIGTERM)
    assert agent.warm.wait(20) == 0


def test_its_agent_hears_of_its_end_when_its_ranks_and_their_clocks_are_gone(agent):
    pid = agent.fork()
    agent.watched.kill()
    agent.watched.wait()
    assert agent.lines.readline() == ""
    assert not psutil.pid_exists(pid) and not agent.clock.exists()


def test_with_the_nodes_raylet_goes_what_its_agents_kept_in_memory(agent):
    agent.fork()
    agent.kill()  # the job has ended
    agent.connection.close()  # and its agent is gone a moment before the raylet is missed
    agent.lines.close()
    others = [agent.folder / "job-1-1.slab", agent.folder / "other-0-1.slab"]
    for path in others:
        path.touch()
    agent.watched.kill()
    agent.watched.wait()
    assert agent.warm.wait(20) == 0
    assert not agent.slab.exists() and not agent.slab.with_suffix(".json").exists()
    assert all(path.exists() for path in others)


def test_what_agents_keep_in_memory_stays_while_the_node_is_there(agent):
    agent.fork()
    agent.kill()
    agent.warm.send_signal(signal.SIGTERM)
    assert agent.warm.wait(20) == 0
    assert agent.slab.exists() and agent.slab.with_suffix(".json").exists()


def test_slabs_that_were_made_after_the_raylet_was_missed_are_another_agents(tmp_path):
    memory, missed_s = NodeMemory(), time.time()
    memory.used(1, {"slab_folder": str(tmp_path), "slab_stem": "job-0"})
    memory.agent_went(1)
    time.sleep(0.05)
    (tmp_path / "job-0-1.slab").touch()
    memory.node_is_lost(missed_s)
    assert (tmp_path / "job-0-1.slab").exists()
    memory.node_is_lost(time.time())
    assert not (tmp_path / "job-0-1.slab").exists()


def test_one_of_older_code_leaves_when_its_last_agent_has(agent):
    agent.fork()
    call_newest(agent.path.with_name("s-newer"))
    agent.kill()
    agent.fork()  # the job goes on with the code that it began with
    agent.kill()
    assert agent.warm.poll() is None
    agent.connection.close()
    agent.lines.close()
    assert agent.warm.wait(20) == 0
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
        assert agent.warm.wait(20) == 0
        assert not agent.path.exists()
    finally:
        agent.close()
