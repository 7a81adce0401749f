"""The interface of an object store: six methods."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class ObjectInfo:
    key: str
    num_bytes: int


class ObjectStore(Protocol):
    """Whole objects under keys with `/`. Writes are atomic: a reader sees an object whole or not at all.

    Every method raises the StorageError of the case; a transient failure is retried inside, so what comes out is final.
    """

    url: str
    """Where it is, for people; holds no secret."""

    def put(self, key: str, data: bytes | memoryview) -> None:
        """Write, replacing what was there."""

    def create(self, key: str, data: bytes) -> None:
        """Write unless the key exists: ObjectExists. If the answer was lost and the object there is `data`, that is success."""

    def get(self, key: str, start: int = 0, length: int | None = None) -> bytes:
        """`length` bytes from `start` (to the end without). ObjectNotFound; a short answer is CorruptObject."""

    def read_into(self, key: str, start: int, buffer: memoryview) -> None:
        """Fill `buffer` with the bytes from `start` on, without a copy in between."""

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """Objects whose key begins with `prefix`, in key order."""

    def delete(self, key: str) -> None:
        """Remove; no error if it is not there."""
