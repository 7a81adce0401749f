"""The interface of an object store: six methods; and what only some can."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol, runtime_checkable


@dataclass(frozen=True)
class ObjectInfo:
    key: str
    num_bytes: int


@dataclass(frozen=True)
class UnfinishedUpload:
    """Parts of an object that was never completed. No reader sees them, but they take space until they are aborted."""

    key: str
    id: str
    begun: datetime
    """By the store's clock, with its time zone."""


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

    def read_into(self, key: str, start: int, *buffers: memoryview) -> None:
        """Fill the buffers, one after the other, with the bytes from `start` on, without a copy in between."""

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """Objects whose key begins with `prefix`, in key order."""

    def delete(self, key: str) -> None:
        """Remove; no error if it is not there."""


@runtime_checkable
class HasUploads(Protocol):
    """A store in which an upload can be cut off half-way and leave its parts behind."""

    def list_unfinished(self, prefix: str) -> Iterator[UnfinishedUpload]:
        """Uploads to keys that begin with `prefix`, those that go on now among them."""

    def abort_unfinished(self, prefix: str, older_than_s: float, now: datetime | None = None) -> Sequence[UnfinishedUpload]:
        """Remove those begun more than `older_than_s` seconds before `now`, and return them. The age must be more than an upload takes."""
