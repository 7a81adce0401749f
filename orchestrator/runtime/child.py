"""The warm process and those that it forks, as processes: what they are set to, how they are told apart, ended and found to have ended."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import time
from collections.abc import Collection
from pathlib import Path

from orchestrator.runtime.task import RankTask

PR_SET_PDEATHSIG = 1
POLL_S = 0.01
ONE_THREAD = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


def start_time(pid: int) -> int | None:
    """Of a living process, in clock ticks since boot: tells it from a later one with its pid. None: it is gone or a zombie."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if fields[0] in "ZX" else int(fields[19])


def has_ended(pid: int) -> bool:
    """Whether a child of this process is a zombie; leaves it one."""
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def await_ends(pids: Collection[int], limit_s: float) -> None:
    """Until all of these children of this process are zombies, or the time is over."""
    limit = time.monotonic() + limit_s
    while not all(has_ended(pid) for pid in pids) and time.monotonic() < limit:
        time.sleep(POLL_S)


def kill_tree(pid: int, number: signal.Signals) -> None:
    """The process and what else is in its session's group."""
    for kill in (os.killpg, os.kill):
        try:
            kill(pid, number)
        except ProcessLookupError:
            continue  # the group does not exist until the child has called setsid


def bury(pid: int) -> tuple[int, int]:
    """(exit code, signal) of a child that has ended. What it left running in its session is killed while the pid is still its own."""
    kill_tree(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    return (0, os.WTERMSIG(status)) if os.WIFSIGNALED(status) else (os.WEXITSTATUS(status), 0)


def die_with_parent(parent: int) -> None:
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before the call
        os._exit(1)


def redirect_output(log: Path) -> None:
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    for stream, number in ((sys.stdout, 1), (sys.stderr, 2)):
        os.dup2(descriptor, number)
        stream.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    os.close(descriptor)


def set_threads(task: RankTask) -> None:
    """Kernels' threads of a rank; the parent had to do with one."""
    threads = int(task.spec["resources"]["threads_per_worker"])
    for name in ONE_THREAD:
        os.environ[name] = str(threads)
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.set_num_threads(threads)


def own_bytes() -> int:
    """Of this process's memory, what is no file's."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("RssAnon:")[2].split()[0]) * 1024


def detach() -> None:
    """Belong to nobody: Ray ends the children of an actor with it."""
    if os.fork():
        os._exit(0)
    os.setsid()
