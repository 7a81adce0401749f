"""SIGTERM as a notice, in processes of their own."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest
from patience import LIMIT_S

BUSY = """
import ctypes, os, signal, sys, time
from orchestrator.runtime.notice import on_sigterm
on_sigterm(lambda: print("told", flush=True))
"""
IN_C = "print('ready', flush=True)\nwhile True: ctypes.CDLL(None).usleep(10_000_000)"
"""The main thread is in C, and the interpreter runs no handler of Python's meanwhile."""
IN_A_READ = "print('ready', flush=True)\nprint(sys.stdin.readline().strip(), flush=True)"
FORKED = """
child = os.fork()
if child == 0:
    print('ready', flush=True)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(60)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@pytest.fixture
def start():
    started = []

    def it(program):
        process = subprocess.Popen([sys.executable, "-c", BUSY + program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        started.append(process)
        assert process.stdout.readline() == "ready\n"
        return process

    yield it
    for process in started:
        process.kill()
        process.communicate()


def test_it_is_told_at_once_and_again_whatever_the_main_thread_does(start):
    process = start(IN_C)
    for _ in range(2):
        process.send_signal(signal.SIGTERM)
        assert process.stdout.readline() == "told\n"
    assert process.poll() is None


def test_a_system_call_that_it_meets_goes_on(start):
    process = start(IN_A_READ)
    process.send_signal(signal.SIGTERM)
    assert process.stdout.readline() == "told\n"
    process.stdin.write("a line\n")
    process.stdin.flush()
    assert process.stdout.readline() == "a line\n"
    assert process.wait(LIMIT_S) == 0


def test_a_forked_child_ends_by_it_and_its_parent_hears_nothing(start):
    process = start(FORKED)
    assert process.stdout.readline() == f"-{int(signal.SIGTERM)}\n"
