"""A store that fails on purpose, at the n-th call, the same way every time: for tests and the chaos mode."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from orchestrator.errors import CorruptObject, StorageUnavailable
from orchestrator.storage.interface import ObjectInfo, ObjectStore
from orchestrator.storage.scattered import Scattered

OPERATIONS = ("put", "create", "get", "read_into", "list", "delete")
KINDS = {
    "unavailable": "503: nothing happens, the caller is told so",
    "lost_answer": "it happens, the caller is told that the store could not be reached",
    "duplicate": "the request arrives twice",
    "rival": "another writer's object comes before a create, and replaces what was put",
    "crash_before": "the caller dies, nothing has happened",
    "crash_after": "it happens, then the caller dies",
    "truncate": "the answer to a read ends early",
    "flip": "one bit of the answer to a read is wrong",
    "truncate_at_rest": "what was written loses its second half",
    "flip_at_rest": "one bit of what was written turns over",
    "delay": "it takes `delay_s` longer",
}
_WRITES, _READS = ("put", "create"), ("get", "read_into")
_ONLY = dict.fromkeys(("rival", "truncate_at_rest", "flip_at_rest"), _WRITES) | dict.fromkeys(("truncate", "flip"), _READS)
"""Operations that a kind can strike; the others strike all."""


class CrashPoint(BaseException):
    """The process dies here. Not an Exception, so that no handler of the code under test swallows it."""


@dataclass(frozen=True, kw_only=True)
class Fault:
    """What happens at the `number`-th call (from 1) of `operation` (`any`: of all of them together) and at the `times - 1` after it."""

    kind: str
    number: int
    operation: str = "any"
    times: int = 1
    delay_s: float = 0.0

    def __post_init__(self) -> None:
        if self.kind not in KINDS or self.operation not in (*OPERATIONS, "any"):
            raise ValueError(f"no such fault: {self.kind} of {self.operation}; kinds are {tuple(KINDS)}, operations {OPERATIONS} or 'any'")
        if self.operation not in (*_ONLY.get(self.kind, OPERATIONS), "any"):
            raise ValueError(f"{self.kind} cannot strike {self.operation}, only {_ONLY[self.kind]}")

    def strikes(self, operation: str, count: int, total: int) -> bool:
        """The call is the `count`-th of its operation and the `total`-th of all."""
        if self.operation not in (operation, "any") or operation not in _ONLY.get(self.kind, OPERATIONS):
            return False
        return self.number <= (total if self.operation == "any" else count) < self.number + self.times


class FaultyStore:
    """`inner` with `faults`. `calls` counts per operation, so that a calm run tells how many boundaries there are."""

    def __init__(self, inner: ObjectStore, faults: Iterable[Fault] = ()) -> None:
        self.url = inner.url
        self.calls: Counter[str] = Counter()
        self.struck: list[str] = []
        """Each fault that came: `kind operation key`."""
        self._inner = inner
        self._faults = tuple(faults)
        self._counting = threading.Lock()

    def add(self, fault: Fault) -> None:
        """One more; its `number` counts from the first call of all."""
        with self._counting:
            self._faults = (*self._faults, fault)

    def put(self, key: str, data: bytes | memoryview) -> None:
        with self._call("put", key) as kind:
            for _ in range(2 if kind == "duplicate" else 1):
                self._inner.put(key, data)
            if kind == "rival":
                self._inner.put(key, _of_another(data))
            self._rot(kind, key, data)

    def create(self, key: str, data: bytes) -> None:
        with self._call("create", key) as kind:
            if kind == "rival":
                self._inner.create(key, _of_another(data))
            for _ in range(2 if kind == "duplicate" else 1):
                self._inner.create(key, data)
            self._rot(kind, key, data)

    def get(self, key: str, start: int = 0, length: int | None = None) -> bytes:
        with self._call("get", key) as kind:
            data = self._inner.get(key, start, length)
            if kind == "truncate" and length is not None:
                raise CorruptObject(f"'{key}' in {self.url} ends early.")
            return _DAMAGE[kind](data) if kind in _DAMAGE else data

    def read_into(self, key: str, start: int, *buffers: memoryview) -> None:
        with self._call("read_into", key) as kind:
            self._inner.read_into(key, start, *buffers)
            if kind == "truncate":
                raise CorruptObject(f"'{key}' in {self.url} ends early.")
            if kind == "flip":
                Scattered(buffers).write(_flipped(b"".join(buffers)))

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        with self._call("list", prefix):
            return self._inner.list(prefix)

    def delete(self, key: str) -> None:
        with self._call("delete", key) as kind:
            for _ in range(2 if kind == "duplicate" else 1):
                self._inner.delete(key)

    @contextmanager
    def _call(self, operation: str, key: str) -> Iterator[str]:
        """Kind of the fault that strikes this call, or an empty string; what can be done around the call itself is done here."""
        with self._counting:  # threads may call
            self.calls[operation] += 1
            due = (fault for fault in self._faults if fault.strikes(operation, self.calls[operation], self.calls.total()))
            fault = next(due, None)
        kind = fault.kind if fault else ""
        if fault:
            self.struck.append(f"{kind} {operation} {key}")
            time.sleep(fault.delay_s)
        if kind == "crash_before":
            raise CrashPoint(f"before {operation} of '{key}'")
        if kind == "unavailable":
            raise StorageUnavailable(f"{self.url} failed for '{key}': 503 SlowDown.")
        yield kind
        if kind == "crash_after":
            raise CrashPoint(f"after {operation} of '{key}'")
        if kind == "lost_answer":
            raise StorageUnavailable(f"{self.url}: the answer to {operation} of '{key}' was lost.")

    def _rot(self, kind: str, key: str, data: bytes | memoryview) -> None:
        if kind.endswith("_at_rest"):
            self._inner.put(key, _DAMAGE[kind.removesuffix("_at_rest")](bytes(data)))


def _of_another(data: bytes | memoryview) -> bytes:
    return bytes(data) + b" of another writer"


def _flipped(data: bytes) -> bytes:
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :] if data else data


def _halved(data: bytes) -> bytes:
    return data[: len(data) // 2]


_DAMAGE: Mapping[str, Callable[[bytes], bytes]] = {"flip": _flipped, "truncate": _halved}
