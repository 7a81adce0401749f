"""The stacks of a rank's threads, in a file, whenever somebody asks for them by a signal. Torch-free."""

from __future__ import annotations

import faulthandler
import os
import signal
from pathlib import Path

STACK_SIGNAL = signal.SIGUSR2
"""A rank that gets it appends the stacks of its threads to `stack_file`, whatever it is doing, and goes on."""


def stack_file(log: Path) -> Path:
    """Beside the output of a rank, where its stacks are."""
    return log.with_suffix(".stacks")


def show_stacks_in(path: Path) -> None:
    """Written by the signal's handler itself, in C: also by a rank that does not come back to Python, or that does not let others."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_TRUNC, 0o600)
    faulthandler.register(STACK_SIGNAL, file=descriptor, all_threads=True, chain=False)
