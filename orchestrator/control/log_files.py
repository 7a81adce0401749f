"""The logs that processes of the control plane write into its folder, and that none of them grows for ever."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import IO

from orchestrator.paths import Home

MOST_BYTES = 10_000_000

log = logging.getLogger("controller")


def open_log(home: Home, name: str) -> IO[bytes]:
    """To append to."""
    path = home.log(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    return path.open("ab")


def shorten_logs(home: Home, most_bytes: int = MOST_BYTES) -> None:
    """Begin those anew that are longer, also while others append to them; the end of what was there goes to `NAME.old.log`."""
    for path in home.logs.glob("*.log"):
        try:
            _shorten(path, most_bytes)
        except OSError as error:
            log.warning("%s cannot be shortened: %s", path, error)


def _shorten(path: Path, most_bytes: int) -> None:
    """A line that is written meanwhile may be lost."""
    with path.open("r+b") as file:
        if os.fstat(file.fileno()).st_size <= most_bytes:
            return
        file.seek(-most_bytes, os.SEEK_END)
        path.with_suffix(".old.log").write_bytes(file.read(most_bytes))
        file.truncate(0)
