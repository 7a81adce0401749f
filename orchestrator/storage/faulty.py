"""A store that fails on purpose, at the n-th call, the same way every time: for tests and the chaos mode."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from orchestrator.errors import CorruptObject, StorageUnavailable
from orchestrator.storage.interface import ObjectInfo, ObjectStore

OPERATIONS = ("put", "create", "get", "read_into", "list", "delete")
KINDS = ("unavailable", "lost_answer", "crash_before", "crash_after", "truncate", "flip", "delay")


class CrashPoint(BaseException):
    """The process dies here. Not an Exception, so that no handler of the code under test swallows it."""


@dataclass(frozen=True, kw_only=True)
class Fault:
    """What happens at the `number`-th call (from 1) of `operation` (`any`: of all of them together)."""

    kind: str
    number: int
    operation: str = "any"
    delay_s: float = 0.0

    def __post_init__(self) -> None:
        if self.kind not in KINDS or self.operation not in (*OPERATIONS, "any"):
            raise ValueError(f"no such fault: {self.kind} of {self.operation}; kinds are {KINDS}, operations {OPERATIONS} or 'any'")


class FaultyStore:
    """`inner` with `faults`. `calls` counts per operation, so that a calm run tells how many boundaries there are."""

    def __init__(self, inner: ObjectStore, faults: Iterable[Fault] = ()) -> None:
        self.url = inner.url
        self.calls: Counter[str] = Counter()
        self._inner = inner
        self._faults = tuple(faults)

    def put(self, key: str, data: bytes | memoryview) -> None:
        fault = self._before("put", key)
        self._inner.put(key, data)
        self._after(fault, key)

    def create(self, key: str, data: bytes) -> None:
        fault = self._before("create", key)
        self._inner.create(key, data)
        self._after(fault, key)

    def get(self, key: str, start: int = 0, length: int | None = None) -> bytes:
        fault = self._before("get", key)
        data = self._inner.get(key, start, length)
        if fault and fault.kind == "truncate":
            if length is not None:
                raise CorruptObject(f"'{key}' in {self.url} ends early.")
            return data[: len(data) // 2]
        return _flipped(data) if fault and fault.kind == "flip" else data

    def read_into(self, key: str, start: int, buffer: memoryview) -> None:
        fault = self._before("read_into", key)
        self._inner.read_into(key, start, buffer)
        if fault and fault.kind == "truncate":
            raise CorruptObject(f"'{key}' in {self.url} ends early.")
        if fault and fault.kind == "flip":
            buffer[:] = _flipped(bytes(buffer))

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        self._before("list", prefix)
        return self._inner.list(prefix)

    def delete(self, key: str) -> None:
        fault = self._before("delete", key)
        self._inner.delete(key)
        self._after(fault, key)

    def _before(self, operation: str, key: str) -> Fault | None:
        self.calls[operation] += 1
        fault = next((fault for fault in self._faults if self._due(fault, operation)), None)
        if fault is None:
            return None
        if fault.kind == "delay":
            time.sleep(fault.delay_s)
        if fault.kind == "crash_before":
            raise CrashPoint(f"before {operation} of '{key}'")
        if fault.kind == "unavailable":
            raise StorageUnavailable(f"{self.url} failed for '{key}': 503 SlowDown.")
        return fault

    def _due(self, fault: Fault, operation: str) -> bool:
        if fault.operation == "any":
            return self.calls.total() == fault.number
        return fault.operation == operation and self.calls[operation] == fault.number

    def _after(self, fault: Fault | None, key: str) -> None:
        if fault and fault.kind == "crash_after":
            raise CrashPoint(f"after the write of '{key}'")
        if fault and fault.kind == "lost_answer":
            raise StorageUnavailable(f"{self.url}: the answer to the write of '{key}' was lost.")


def _flipped(data: bytes) -> bytes:
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :] if data else data
