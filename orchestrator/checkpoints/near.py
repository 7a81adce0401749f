"""What lies in this node's memory already is read from there instead of the store: a rank that starts again reads its last save so."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from orchestrator.checkpoints.slab import Slab, arrange, read_staged, slabs_of
from orchestrator.errors import CorruptObject
from orchestrator.paths import segment_key
from orchestrator.storage import ObjectInfo, ObjectStore
from orchestrator.storage.scattered import Scattered


@dataclass(frozen=True)
class _Place:
    slab: Slab
    start: int
    num_bytes: int


class NearStore:
    """`store`, with the segments in slabs of this node served from memory.

    Only what `read_into` reads, which a checkpoint's reader verifies by checksum: a slab that is overwritten meanwhile is found out.
    """

    def __init__(self, store: ObjectStore, folder: Path, stem: str) -> None:
        """`stem` begins the names of the job's slabs in `folder`."""
        self.url = store.url
        self.origin = store
        """Where bytes come from that are not here, or not good here."""
        self._places = dict(_places(folder, stem))
        self.near_bytes = 0
        """Bytes that did not come from the store."""

    def near(self, key: str) -> bool:
        return key in self._places

    def read_into(self, key: str, start: int, *buffers: memoryview) -> None:
        place = self._places.get(key)
        if place is None:
            self.origin.read_into(key, start, *buffers)
            return
        target = Scattered(buffers)
        end = start + target.missing_bytes
        if end > place.num_bytes:
            raise CorruptObject(f"'{key}' in {place.slab.path} ends {end - place.num_bytes} bytes early.")
        target.write(place.slab.content[place.start + start : place.start + end])
        self.near_bytes += target.filled_bytes

    def put(self, key: str, data: bytes | memoryview) -> None:
        self.origin.put(key, data)

    def create(self, key: str, data: bytes) -> None:
        self.origin.create(key, data)

    def get(self, key: str, start: int = 0, length: int | None = None) -> bytes:
        return self.origin.get(key, start, length)

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        return self.origin.list(prefix)

    def delete(self, key: str) -> None:
        self.origin.delete(key)


def _places(folder: Path, stem: str) -> Iterator[tuple[str, _Place]]:
    for path in slabs_of(folder, stem):
        try:
            staged, slab = read_staged(path), Slab.open(path)
        except FileNotFoundError:  # being written, or never used
            continue
        for number, portion in enumerate(arrange(staged.rows), staged.first_segment):
            if staged.prefix:
                yield segment_key(staged.prefix, staged.writer, number), _Place(slab, portion.start, portion.num_bytes)
