"""Where a node's warm process is found, and which of several is the newest. Torch-free.

    warm-<environment>-<content>.sock         its socket; `content` is a fingerprint of code and packages
    warm-<environment>-<content>.sock.lock    held while it lives
    warm-<environment>.newest                 name of the socket that an agent has asked for last: the others are of older code
"""

from __future__ import annotations

import fcntl
import os
import socket
from pathlib import Path


def socket_name(environment: str, content: str) -> str:
    return f"warm-{environment}-{content}.sock"


def call_newest(path: Path) -> None:
    """From now on the process at the socket `path` is the newest of its environment."""
    if _newest(path) != path.name:
        draft = _newest_file(path).with_suffix(f".{os.getpid()}")
        draft.write_text(path.name)
        draft.replace(_newest_file(path))


def is_newest(path: Path) -> bool:
    """Whether nobody has asked for another one since."""
    return _newest(path) in (None, path.name)


def hold_lock(path: Path) -> int | None:
    """The descriptor of the lock, or None if a warm process holds it."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor


def listen(path: Path) -> socket.socket:
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    before = os.umask(0o177)
    try:
        listener.bind(str(path))
    finally:
        os.umask(before)
    listener.listen(64)
    return listener


def _newest(path: Path) -> str | None:
    try:
        return _newest_file(path).read_text()
    except FileNotFoundError:
        return None


def _newest_file(path: Path) -> Path:
    return path.with_name(f"{path.stem.rpartition('-')[0] or path.stem}.newest")
