"""Ports: those of a control plane where no others are named, and those that are kept for a server that is still to start."""

from __future__ import annotations

import socket

API_PORT, DASHBOARD_PORT = 8470, 5000

_held: list[socket.socket] = []


def hold_port(host: str) -> socket.socket:
    """A socket that keeps a free port of `host` (`getsockname()[1]`) until it is closed.

    Linux gives a port that is bound to nobody else by itself, neither to a server that asks for any nor to an outgoing connection; a
    server that names the port may listen at it all the same, if it sets SO_REUSEADDR: torch's store, gRPC, uvicorn and others do.
    """
    holder = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        holder.bind((host, 0))
    except OSError:
        holder.close()
        raise
    return holder


def free_port() -> int:
    """Of 127.0.0.1; kept for as long as this process lives, for a server that it starts."""
    _held.append(hold_port("127.0.0.1"))
    return int(_held[-1].getsockname()[1])
