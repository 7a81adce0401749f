"""What faults do to processes. For the chaos mode and for tests."""

from __future__ import annotations

import ctypes
import json
import os
import signal
import socket
import time

import psutil

from orchestrator.paths import Home

HOLD_S = 600
_UPLOADER = "orchestrator.supervision.uploader"


def kill(pid: int) -> None:
    """SIGKILL; no error if it is gone."""
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return


def stop_self() -> None:
    """SIGSTOP: nobody but a signal from outside brings this process back."""
    os.kill(os.getpid(), signal.SIGSTOP)


class _Timespec(ctypes.Structure):
    _fields_ = (("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long))


def hold_gil(seconds: int = HOLD_S) -> None:
    """No other thread of this process runs Python meanwhile. Not by sleep(3), which the signal that asks for a stack would end."""
    library, mutex = ctypes.PyDLL(None), ctypes.create_string_buffer(64)  # PyDLL: calls without letting go of the lock
    library.pthread_mutex_lock(mutex)
    library.pthread_mutex_timedlock(mutex, ctypes.byref(_Timespec(int(time.time()) + seconds + 1, 0)))


def drop_connections() -> int:
    """Shut down every TCP connection of this process, whoever owns it; both sides read an end. Returns how many there were."""
    count = 0
    for name in os.listdir("/proc/self/fd"):  # noqa: PTH208 - names of descriptors
        try:
            with socket.socket(fileno=os.dup(int(name))) as connection:
                if connection.family in (socket.AF_INET, socket.AF_INET6) and connection.type == socket.SOCK_STREAM:
                    connection.getpeername()  # one that listens has none, and would end by a shutdown
                    connection.shutdown(socket.SHUT_RDWR)
                    count += 1
        except OSError:  # no socket, or none that is connected
            continue
    return count


def uploader_of(agent: int) -> int | None:
    """Pid of an agent's uploader."""
    try:
        found = [child.pid for child in psutil.Process(agent).children() if _UPLOADER in child.cmdline()]
    except psutil.Error:
        return None
    return next(iter(found), None)


def raylet_of(agent: int) -> int | None:
    """Pid of the raylet that an agent runs on; None on the head, which is not to be lost."""
    try:
        raylet = psutil.Process(agent).parent()
        if raylet is None or raylet.name() != "raylet" or any(word.startswith("--head") for word in raylet.cmdline()):
            return None
    except psutil.Error:
        return None
    return int(raylet.pid)


def controller_of(home: Home) -> int | None:
    """Pid of the home's living controller."""
    try:
        found = json.loads(home.controller_lock.read_bytes())
        process = psutil.Process(found["pid"])
        return int(process.pid) if abs(process.create_time() - found["created"]) < 0.05 else None
    except (FileNotFoundError, ValueError, KeyError, psutil.Error):
        return None
