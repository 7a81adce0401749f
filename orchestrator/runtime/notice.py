"""SIGTERM as a notice: who sends it (a cloud before it takes a machine back, Slurm, Kubernetes) gives time to leave. Torch-free."""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Callable


def on_sigterm(tell: Callable[[], None]) -> None:
    """From now on SIGTERM does not end this process: `tell` is called for it on a thread of its own.

    At once, whatever the main thread does, a collective too: the interpreter writes the signal's number into a socket from its C handler.
    System calls that it meets are restarted. To be called on the main thread; children that are forked later have the default back.
    """
    reading, writing = socket.socketpair()
    writing.setblocking(False)
    signal.signal(signal.SIGTERM, lambda *_: None)
    signal.siginterrupt(signal.SIGTERM, False)
    signal.set_wakeup_fd(writing.fileno(), warn_on_full_buffer=False)
    os.register_at_fork(after_in_child=_forget)
    threading.Thread(target=_listen, args=(reading, writing, tell), name="notice", daemon=True).start()


def _listen(reading: socket.socket, writing: socket.socket, tell: Callable[[], None]) -> None:
    """Holds on to `writing` too: closed, it would be a stranger's descriptor."""
    while numbers := reading.recv(64):
        if signal.SIGTERM in numbers:
            tell()
    writing.close()


def _forget() -> None:
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
