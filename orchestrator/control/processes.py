"""Processes by identity: a pid alone can be another's by now, so it is always taken together with its start time or its mark."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import time
from collections.abc import Callable, Iterable
from typing import Any

import psutil

CLUSTER_MARK = "ORCHESTRATOR_CLUSTER"
"""In the environment of every process of a local cluster: its id."""
HOME_MARK = "ORCHESTRATOR_HOME"

_PR_SET_PDEATHSIG = 1
_libc: Any = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None


def start_time(pid: int) -> float | None:
    """Seconds since 1970 at which the process began; None if there is none or it is dead and not yet reaped."""
    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else process.create_time()
    except psutil.Error:
        return None


def is_same(pid: int, created: float) -> bool:
    """Does the process still live that had this pid and start time?"""
    found = start_time(pid)
    return found is not None and abs(found - created) < 0.05


def marked(home: str, cluster_id: str = "") -> list[psutil.Process]:
    """Living processes of local clusters of this home, or of one of them."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.pid == os.getpid() or process.status() == psutil.STATUS_ZOMBIE:
                continue
            environment = process.environ()
        except psutil.Error:
            continue
        mark = environment.get(CLUSTER_MARK, "")
        if mark and environment.get(HOME_MARK) == home and cluster_id in ("", mark):
            found.append(process)
    return found


def end(processes: Iterable[psutil.Process], grace_s: float) -> None:
    """SIGTERM, and SIGKILL to those that are still there after `grace_s`."""
    living = list(processes)
    for send, wait_s in (("terminate", grace_s), ("kill", 5.0)):
        for process in living:
            _tell(process, send)
        _, living = psutil.wait_procs(living, timeout=wait_s)


def wait_until(condition: Callable[[], bool], limit_s: float) -> bool:
    """Poll until it holds; False if it did not within `limit_s`."""
    deadline = time.monotonic() + limit_s
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def die_with_parent() -> None:
    """Between fork and exec: the new process gets SIGTERM when the thread that forked it ends."""
    if _libc is not None:
        _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _tell(process: psutil.Process, what: str) -> None:
    try:
        getattr(process, what)()
    except psutil.NoSuchProcess:
        return
