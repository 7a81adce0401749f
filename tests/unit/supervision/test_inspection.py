"""How ranks that stand still are looked at."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time

import pytest
from patience import LIMIT_S

from orchestrator.runtime.link import Phase, Reading
from orchestrator.runtime.stacks import STACK_SIGNAL, stack_file
from orchestrator.supervision import inspection

STACK = """\
Thread 0x00007f (most recent call first):
  File "work.py", line 3 in loop
  File "<frozen runpy>", line 198 in _run_module_as_main
"""
RANK = """
import sys, time
from pathlib import Path
from orchestrator.runtime.stacks import show_stacks_in, stack_file

def waits():
    print("ready", flush=True)
    time.sleep(600)

show_stacks_in(stack_file(Path(sys.argv[1])))
waits()
"""


@pytest.fixture(autouse=True)
def patient(monkeypatch):
    monkeypatch.setattr(inspection, "ANSWER_S", LIMIT_S)


def test_stacks_that_come_late_and_frame_by_frame_are_waited_for(tmp_path):
    """As on a machine that is overloaded."""
    other = subprocess.Popen(["sleep", "600"])
    files = [tmp_path / "0.stack", tmp_path / "1.stack"]
    for file in files:
        file.write_text("of an earlier look\n")
    size = files[0].stat().st_size

    def answer():
        for line in STACK.splitlines(keepends=True):
            time.sleep(0.2)
            for file in files:
                with file.open("a") as opened:
                    opened.write(line)

    writer = threading.Thread(target=answer)
    writer.start()
    inspection._wait_for_stacks({os.getpid(): (files[0], size), other.pid: (files[1], size)})
    assert [file.read_text()[size:] for file in files] == [STACK] * 2
    writer.join()
    other.kill()
    other.wait()


@pytest.fixture
def rank(tmp_path):
    log, program = tmp_path / "rank-0.log", tmp_path / "a_rank.py"
    program.write_text(RANK)
    command = [sys.executable, "-m", "a_rank", str(log)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=tmp_path)
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    yield process.pid, log
    process.kill()
    process.wait()
    process.stdout.close()


def look(pid, log):
    reading = Reading(step=7, moves=2, phase=Phase.FORWARD, ticked_s=0.0, step_p99_s=0.0)
    return inspection.inspect_ranks({0: pid}, {0: reading}, lambda _: 5.0, {0: log})[0]


def test_a_stack_that_is_written_at_once_is_seen_and_only_that_of_this_look(rank, monkeypatch):
    """The agent loses the processor after it has asked: the answer stands in the file before the agent goes on."""
    pid, log = rank

    def kill_and_lose_the_processor(pid, number):
        kill(pid, number)
        if number == STACK_SIGNAL:
            time.sleep(0.5)

    kill = os.kill
    monkeypatch.setattr(inspection.os, "kill", kill_and_lose_the_processor)
    for _ in range(2):
        found = look(pid, log)
        assert "in waits" in found["stack"]
        assert found["stack"].count("(most recent call first)") == 1
    assert stack_file(log).read_text().count("(most recent call first)") == 2


def test_a_rank_that_is_stopped_is_not_asked(rank, monkeypatch):
    pid, log = rank
    asked = []
    os.kill(pid, signal.SIGSTOP)
    os.waitid(os.P_PID, pid, os.WSTOPPED)
    with monkeypatch.context() as patch:
        patch.setattr(inspection.os, "kill", lambda pid, number: asked.append(number))
        patch.setattr(inspection.time, "sleep", lambda pause_s: asked.append("a wait"))
        found = look(pid, log)
    assert (found["state"], found["stack"], asked) == ("T", "", [])
    os.kill(pid, signal.SIGCONT)
    assert stack_file(log).read_text() == ""


def test_the_end_of_a_huge_log_is_read_and_not_the_log(tmp_path):
    log = tmp_path / "rank.log"
    with log.open("wb") as file:
        file.truncate(1 << 40)
        file.seek(0, os.SEEK_END)
        file.write(b"the end")
    assert inspection.text_since(log, -7, -1) == "the end"
    assert inspection.text_since(tmp_path / "none", -7, -1) == ""
