"""Every block of a checkpoint is read and checked. Torch-free."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from orchestrator.checkpoints.manifest import BLOCK_BYTES, Manifest, Segment, crc64
from orchestrator.errors import CorruptObject, ObjectNotFound
from orchestrator.storage import ObjectStore

THREADS = 8
"""Each holds one block in memory."""


@dataclass(frozen=True, order=True)
class Damage:
    key: str
    block: int | None
    """None: the whole object."""
    message: str


def blocks_of(segment: Segment) -> list[tuple[int, int]]:
    """(number, bytes) of each block."""
    return [(number, min(BLOCK_BYTES, segment.num_bytes - number * BLOCK_BYTES)) for number in range(len(segment.block_crcs))]


def verify(store: ObjectStore, manifest: Manifest, tell: Callable[[int], None] = lambda num_bytes: None) -> list[Damage]:
    """What is damaged or missing; a block counts as damaged when two reads of it are. `tell(bytes)` hears of every block that was read.

    Raises StorageError for what the store refuses or cannot answer.
    """
    asked = [(segment, number, size) for segment in manifest.segments for number, size in blocks_of(segment)]
    found: set[Damage] = set()
    with ThreadPoolExecutor(THREADS) as pool:
        checks = [pool.submit(_damage, store, segment, number, size) for segment, number, size in asked]
        try:
            for (_, _, size), check in zip(asked, checks, strict=True):
                damage = check.result()
                if damage:
                    found.add(damage)
                tell(size)
        finally:
            for check in checks:
                check.cancel()
    return sorted(found, key=lambda damage: (damage.key, -1 if damage.block is None else damage.block))


def _damage(store: ObjectStore, segment: Segment, number: int, size: int) -> Damage | None:
    try:
        return _wrong(store, segment, number, size) and _wrong(store, segment, number, size)
    except ObjectNotFound:
        return Damage(segment.key, None, f"'{segment.key}' is gone.")


def _wrong(store: ObjectStore, segment: Segment, number: int, size: int) -> Damage | None:
    content = memoryview(bytearray(size))
    try:
        store.read_into(segment.key, number * BLOCK_BYTES, content)
    except CorruptObject as error:
        return Damage(segment.key, number, str(error))
    read, expected = crc64(content), segment.block_crcs[number]
    if read == expected:
        return None
    return Damage(segment.key, number, f"'{segment.key}' block {number} is damaged: CRC-64 {read:016x}, expected {expected:016x}.")
