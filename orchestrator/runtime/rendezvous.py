"""Where the ranks of a job meet: the store of rank 0."""

from __future__ import annotations

import socket
import time

LOOK_S = 0.005
LIMIT_S = 300.0


def await_store(host: str, port: int, limit_s: float = LIMIT_S) -> None:
    """Until rank 0 listens, or for `limit_s`. A client of torch's store that comes too early waits half a second before it tries again."""
    deadline = time.monotonic() + limit_s
    while time.monotonic() < deadline:
        try:
            socket.create_connection((host, port), timeout=5.0).close()
        except OSError:
            time.sleep(LOOK_S)
        else:
            return
