"""A store in this process's memory, for tests and the simulator."""

from __future__ import annotations

import threading
from collections.abc import Iterator

from orchestrator.errors import CorruptObject, ObjectExists, ObjectNotFound
from orchestrator.storage.interface import ObjectInfo
from orchestrator.storage.scattered import Scattered


class MemoryStore:
    def __init__(self, name: str = "memory") -> None:
        self.url = f"memory://{name}"
        self._objects: dict[str, bytes] = {}
        self._lock = threading.Lock()

    def put(self, key: str, data: bytes | memoryview) -> None:
        with self._lock:
            self._objects[key] = bytes(data)

    def create(self, key: str, data: bytes) -> None:
        with self._lock:
            if self._objects.setdefault(key, bytes(data)) != data:
                raise ObjectExists(f"'{key}' exists in {self.url} with other content.")

    def get(self, key: str, start: int = 0, length: int | None = None) -> bytes:
        found = self._objects.get(key)
        if found is None:
            raise ObjectNotFound(f"'{key}' is not in {self.url}.")
        if length is not None and start + length > len(found):
            raise CorruptObject(f"'{key}' has {len(found)} bytes, wanted were {length} from {start} on.")
        return found[start:] if length is None else found[start : start + length]

    def read_into(self, key: str, start: int, *buffers: memoryview) -> None:
        target = Scattered(buffers)
        target.write(self.get(key, start, target.missing_bytes))

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        with self._lock:
            found = sorted((key, len(data)) for key, data in self._objects.items() if key.startswith(prefix))
        return (ObjectInfo(key, size) for key, size in found)

    def delete(self, key: str) -> None:
        with self._lock:
            self._objects.pop(key, None)
