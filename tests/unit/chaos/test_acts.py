"""What faults do to real processes and connections."""

from __future__ import annotations

import itertools
import os
import signal
import socket
import subprocess
import sys
import threading
import time

import psutil
import pytest
from patience import LIMIT_S, wait_until

from orchestrator.chaos import acts
from orchestrator.control.lock import ControllerLock
from orchestrator.paths import Home


def in_child(act):
    """Wait status of a forked process that did `act()`; its exit code is what that returned."""
    pid = os.fork()
    if pid == 0:
        os._exit(act() or 0)
    _, status = os.waitpid(pid, os.WUNTRACED)
    return pid, status


def test_dropped_connections_read_as_ended_on_both_sides_and_listeners_stay():
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as mine:
        theirs, _ = server.accept()
        pair = socket.socketpair()

        def dropped():
            count = acts.drop_connections()
            pair[0].send(b"still there")  # of no TCP connection
            return count if mine.recv(1) == b"" else 99

        with theirs:
            _, status = in_child(dropped)
            theirs.settimeout(LIMIT_S)
            assert os.waitstatus_to_exitcode(status) >= 2 and theirs.recv(1) == b""
        assert pair[1].recv(20) == b"still there"
        with socket.create_connection(server.getsockname()) as again:
            assert again.getpeername() == server.getsockname()


def test_a_stopped_process_is_stopped_and_a_killed_one_is_gone():
    pid, status = in_child(acts.stop_self)
    assert os.WIFSTOPPED(status) and os.WSTOPSIG(status) == signal.SIGSTOP
    acts.kill(pid)
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == -signal.SIGKILL
    acts.kill(pid)  # it is gone: no error


def test_while_the_lock_is_held_no_other_thread_moves():
    moved, stop = [], threading.Event()

    def move():
        while not stop.is_set():
            moved.append(time.monotonic())
            time.sleep(0.001)

    thread = threading.Thread(target=move)
    thread.start()
    wait_until(lambda: moved)
    began = time.monotonic()
    acts.hold_gil(1)
    ended = time.monotonic()
    wait_until(lambda: moved[-1] > ended)
    stop.set()
    thread.join()
    assert ended - began >= 1.0
    assert max(after - before for before, after in itertools.pairwise(moved)) >= 0.5, "or else it moved every millisecond"


@pytest.mark.parametrize(("arguments", "may_be_lost"), [((), True), (("--head",), False)])
def test_the_raylet_of_an_agent_is_its_parent_unless_that_is_the_head(tmp_path, arguments, may_be_lost):
    (tmp_path / "raylet").symlink_to(sys._base_executable)
    code = "import subprocess; agent = subprocess.Popen(['sleep', '60']); print(agent.pid, flush=True); agent.wait()"
    with subprocess.Popen([tmp_path / "raylet", "-c", code, *arguments], stdout=subprocess.PIPE) as raylet:
        assert raylet.stdout is not None
        agent = int(raylet.stdout.readline())
        assert acts.raylet_of(agent) == (raylet.pid if may_be_lost else None)
        acts.kill(agent)


def test_what_is_no_raylet_and_no_uploader_is_not_taken_for_one():
    assert acts.raylet_of(os.getpid()) is None and acts.uploader_of(os.getpid()) is None
    gone, _ = in_child(lambda: 0)
    assert acts.raylet_of(gone) is None and acts.uploader_of(gone) is None


def test_the_controller_is_the_living_holder_of_its_lock(tmp_path):
    home = Home(tmp_path)
    assert acts.controller_of(home) is None
    lock = ControllerLock(home)
    assert lock.acquire()
    lock.publish("127.0.0.1:1", ready=True)
    assert acts.controller_of(home) == os.getpid()
    content = home.controller_lock.read_text().replace(f"{psutil.Process().create_time()}", "1.0")
    home.controller_lock.write_text(content)
    assert acts.controller_of(home) is None, "another process has that pid now"
