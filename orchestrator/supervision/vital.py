"""Threads without which their process is of no use."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable

log = logging.getLogger("orchestrator.agent")


def start_vital(name: str, run: Callable[[], None]) -> threading.Thread:
    """A daemon thread. What it raises ends the process, with the traceback in its log: who waits for the process learns of that."""
    thread = threading.Thread(target=_run_vital, args=(name, run), name=name, daemon=True)
    thread.start()
    return thread


def _run_vital(name: str, run: Callable[[], None]) -> None:
    try:
        run()
    except BaseException:  # the last frame of the thread: without it the process would live on and do nothing
        log.exception("the thread '%s' failed, and this process ends with it", name)
        os._exit(1)
