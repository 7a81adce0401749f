"""Kept-alive HTTP connections, each lent to one request at a time."""

from __future__ import annotations

import os
import select
import socket
import ssl
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from http.client import HTTPConnection, HTTPSConnection
from pathlib import Path

Host = tuple[str, str]
"""Scheme (`http`, `https`) and `host[:port]`."""


class Connections:
    """At most `limit` at once; who asks for more waits. A forked child begins with none.

    The read timeout is Python's and, for who reads from a blocking socket, the kernel's (SO_RCVTIMEO). TLS is verified against
    `ca_bundle`, a file or a folder of certificates.
    """

    def __init__(self, *, limit: int, connect_timeout_s: float, read_timeout_s: float, ca_bundle: str) -> None:
        self._places = threading.BoundedSemaphore(limit)
        self._connect_timeout_s = connect_timeout_s
        self._read_timeout_s = read_timeout_s
        self._ca_bundle = ca_bundle
        self._idle: dict[Host, list[HTTPConnection]] = {}
        self._pid = os.getpid()

    @contextmanager
    def lent(self, host: Host) -> Iterator[HTTPConnection]:
        """Connected; kept for the next one unless the block raises. OSError if it cannot be opened.

        The answer of a request must be read to its end within the block.
        """
        with self._places:
            connection = self._kept(host) or self._opened(host)
            connection.sock.settimeout(self._read_timeout_s)
            try:
                yield connection
            except BaseException:
                connection.close()
                raise
            if connection.sock is not None:
                self._idle.setdefault(host, []).append(connection)

    def _kept(self, host: Host) -> HTTPConnection | None:
        """One that the server has not closed meanwhile."""
        if self._pid != os.getpid():
            self._idle, self._pid = {}, os.getpid()
        idle = self._idle.setdefault(host, [])
        while True:
            try:
                connection = idle.pop()
            except IndexError:
                return None
            if not _readable(connection):
                return connection
            connection.close()

    def _opened(self, host: Host) -> HTTPConnection:
        scheme, address = host
        if scheme == "https":
            connection: HTTPConnection = HTTPSConnection(address, timeout=self._connect_timeout_s, context=self._tls)
        else:
            connection = HTTPConnection(address, timeout=self._connect_timeout_s)
        connection.connect()
        connection.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, _timeval(self._read_timeout_s))
        return connection

    @cached_property
    def _tls(self) -> ssl.SSLContext:
        if Path(self._ca_bundle).is_dir():
            return ssl.create_default_context(capath=self._ca_bundle)
        return ssl.create_default_context(cafile=self._ca_bundle)


def _readable(connection: HTTPConnection) -> bool:
    """Between requests only the end of the connection can be read."""
    poll = select.poll()
    poll.register(connection.sock, select.POLLIN)
    return bool(poll.poll(0))


def _timeval(seconds: float) -> bytes:
    """As the kernel wants it; at least a microsecond, since 0 means for ever."""
    return struct.pack("@ll", *divmod(max(int(seconds * 1e6), 1), 1_000_000))
