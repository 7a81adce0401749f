"""What passes between the fast store and its clients: memory, requests, answers."""

from __future__ import annotations

import itertools
import mmap
import os
import socket
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from email.utils import formatdate
from http import HTTPStatus
from urllib.parse import parse_qsl, unquote, urlsplit

ROUND_BYTES = 1 << 21
NUMBERS = itertools.count(1)
FILE = os.memfd_create("blocks")
"""All bodies lie in it, one behind the other."""
GROWING = threading.Lock()
FREE: defaultdict[int, list[tuple[int, mmap.mmap]]] = defaultdict(list)
"""Memory that is mapped and not used now, by size, and where in the file it begins."""


class Block:
    """Memory of one body. It is used again, mapped as it is, once nothing refers to the block: a fresh page costs more than a copy."""

    def __init__(self, num_bytes: int) -> None:
        self._size = -(-num_bytes // ROUND_BYTES) * ROUND_BYTES or ROUND_BYTES
        try:
            self.start, self._memory = FREE[self._size].pop()
        except IndexError:
            with GROWING:
                self.start = os.fstat(FILE).st_size
                os.ftruncate(FILE, self.start + self._size)
            self._memory = mmap.mmap(FILE, self._size, offset=self.start)
            self._memory.madvise(mmap.MADV_HUGEPAGE)
        self.data = memoryview(self._memory)[:num_bytes]

    def __del__(self) -> None:
        FREE[self._size].append((self.start, self._memory))


@dataclass
class Stored:
    blocks: list[Block]
    metadata: dict[str, str]
    etag: str = field(default_factory=lambda: f'"{next(NUMBERS):032x}"')
    modified: float = field(default_factory=time.time)

    @property
    def size(self) -> int:
        return sum(len(block.data) for block in self.blocks)

    def pieces(self, start: int, end: int) -> Iterator[tuple[int, int]]:
        """First byte in the file, and the one behind the last."""
        offset = 0
        for block in self.blocks:
            low, high = max(start - offset, 0), min(end - offset, len(block.data))
            if low < high:
                yield block.start + low, block.start + high
            offset += len(block.data)


@dataclass
class Request:
    method: str
    bucket: str
    key: str
    query: dict[str, str]
    headers: dict[str, str]
    body: Block


@dataclass
class Answer:
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    text: str = ""
    stored: Stored | None = None
    start: int = 0
    end: int = 0


class Incoming:
    """The bytes of a connection: lines from a small buffer, bodies past it straight to where they stay."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._held = b""

    def line(self) -> bytes:
        """Without its end. ConnectionError when there is no more."""
        while b"\r\n" not in self._held:
            more = self._connection.recv(16384)
            if not more:
                raise ConnectionError
            self._held += more
        line, _, self._held = self._held.partition(b"\r\n")
        return line

    def fill(self, target: memoryview) -> None:
        filled = min(len(self._held), len(target))
        target[:filled] = self._held[:filled]
        self._held = self._held[filled:]
        while filled < len(target):
            count = self._connection.recv_into(target[filled:], 0, socket.MSG_WAITALL)
            if not count:
                raise ConnectionError
            filled += count

    def request(self) -> Request:
        method, target, _ = self.line().decode().split(" ", 2)
        headers = {}
        while line := self.line():
            name, _, value = line.decode("latin-1").partition(":")
            headers[name.strip().lower()] = value.strip()
        if headers.get("expect", "").lower() == "100-continue":
            self._connection.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        url = urlsplit(target)
        _, bucket, key = f"{unquote(url.path)}/".split("/", 2)
        query = dict(parse_qsl(url.query, keep_blank_values=True))
        return Request(method, bucket, key[:-1], query, headers, self._body(headers))

    def _body(self, headers: dict[str, str]) -> Block:
        source = Chunked(self) if headers.get("transfer-encoding") == "chunked" else self
        if "aws-chunked" not in headers.get("content-encoding", ""):
            block = Block(int(headers.get("content-length", 0)))
            source.fill(block.data)
            return block
        block = Block(int(headers["x-amz-decoded-content-length"]))
        filled = 0
        while size := int(source.line().split(b";")[0], 16):
            source.fill(block.data[filled : filled + size])
            filled += size
            source.line()
        while source.line():  # trailers
            pass
        source.end()
        return block

    def end(self) -> None:
        """Nothing follows a body of known length."""


class Chunked:
    """A body that HTTP itself cuts into chunks, whole again."""

    def __init__(self, incoming: Incoming) -> None:
        self._incoming = incoming
        self._held = bytearray(1 << 17)
        self._at = self._end = 0

    def line(self) -> bytes:
        while (end := self._held.find(b"\r\n", self._at, self._end)) < 0:
            self._load()
        line = bytes(self._held[self._at : end])
        self._at = end + 2
        return line

    def fill(self, target: memoryview) -> None:
        while len(target):
            if self._at == self._end:
                self._load()
            count = min(self._end - self._at, len(target))
            target[:count] = memoryview(self._held)[self._at : self._at + count]
            self._at += count
            target = target[count:]

    def end(self) -> None:
        while self._load():
            pass

    def _load(self) -> int:
        """The next chunk, behind what is held. The last one has no bytes."""
        rest = self._held[self._at : self._end]
        size = int(self._incoming.line().split(b";")[0], 16)
        self._at, self._end = 0, len(rest) + size
        if self._end > len(self._held):
            self._held = bytearray(self._end)
        self._held[: len(rest)] = rest
        self._incoming.fill(memoryview(self._held)[len(rest) : self._end])
        self._incoming.line()
        return size


def send(connection: socket.socket, request: Request, answer: Answer) -> None:
    text = f'<?xml version="1.0" encoding="UTF-8"?>\n{answer.text}'.encode() if answer.text else b""
    length = answer.end - answer.start if answer.stored else len(text)
    headers = {"Content-Type": "application/xml", **answer.headers, "Date": formatdate(usegmt=True)}
    if answer.status != 204:
        headers["Content-Length"] = str(length)
    lines = [f"HTTP/1.1 {answer.status} {HTTPStatus(answer.status).phrase}", *(f"{name}: {value}" for name, value in headers.items())]
    connection.sendall("\r\n".join([*lines, "", ""]).encode() + (b"" if request.method == "HEAD" else text))
    if answer.stored and request.method != "HEAD":
        for low, high in answer.stored.pieces(answer.start, answer.end):
            while low < high:  # without a copy: the blocks must stay until the client has all of it
                low += os.sendfile(connection.fileno(), FILE, low, high - low)
