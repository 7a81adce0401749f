"""Every block is looked at, and what was damaged only on its way is not called damaged; pins of what is going."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from stored import KEYS, begin, names, save

from orchestrator.checkpoints.catalog import read_catalog
from orchestrator.checkpoints.commit import CommitLog
from orchestrator.checkpoints.manifest import BLOCK_BYTES, Manifest, Segment, crc64
from orchestrator.checkpoints.pins import pin
from orchestrator.checkpoints.verify import blocks_of, verify
from orchestrator.errors import CheckpointError, StorageUnavailable
from orchestrator.storage import Fault, FaultyStore, MemoryStore


def large(store):
    """A manifest of one segment of three blocks, the last one short."""
    content = bytes(range(256)) * (2 * BLOCK_BYTES // 256) + b"end"
    store.put("seg", content)
    crcs = tuple(crc64(content[start : start + BLOCK_BYTES]) for start in range(0, len(content), BLOCK_BYTES))
    segment = Segment(key="seg", num_bytes=len(content), block_crcs=crcs)
    values = {"job_id": "job", "step": 1, "epoch": 1, "prefix": "p/", "world_size": 1, "zero_stage": 0, "slices": (), "rank_scalars": ()}
    return Manifest(segments=(segment,), job_scalars={}, **values)


def test_the_damaged_block_is_named_and_all_bytes_are_read():
    store = MemoryStore()
    manifest, heard = large(store), []
    assert [size for _, size in blocks_of(manifest.segments[0])] == [BLOCK_BYTES, BLOCK_BYTES, 3]
    assert verify(store, manifest, heard.append) == [] and sum(heard) == 2 * BLOCK_BYTES + 3
    content = bytearray(store.get("seg"))
    content[BLOCK_BYTES + 5] ^= 8
    store.put("seg", bytes(content))
    (damage,) = verify(store, manifest)
    assert (damage.key, damage.block) == ("seg", 1) and "block 1 is damaged: CRC-64" in damage.message
    store.put("seg", bytes(content[:-1]))
    assert [damage.block for damage in verify(store, manifest)] == [1, 2]
    store.delete("seg")
    (damage,) = verify(store, manifest)
    assert (damage.block, damage.message) == (None, "'seg' is gone.")


@pytest.mark.parametrize("kind", ["flip", "truncate"])
def test_what_is_good_at_the_second_look_is_good(kind):
    store = MemoryStore()
    manifest = large(store)
    assert verify(FaultyStore(store, [Fault(kind=kind, operation="read_into", number=2)]), manifest) == []


def test_a_store_that_does_not_answer_is_no_damage():
    store = MemoryStore()
    manifest = large(store)
    with pytest.raises(StorageUnavailable):
        verify(FaultyStore(store, [Fault(kind="unavailable", operation="read_into", number=2)]), manifest)


def test_a_pin_of_what_went_meanwhile_is_taken_back():
    store = MemoryStore()
    ref, _ = save(store, begin(store), 1)
    (entry,) = read_catalog(store, KEYS).entries
    pin(store, KEYS, entry, 60.0, 0.0)
    assert names(store, KEYS.pins) == [KEYS.pin(1, 1)]
    assert read_catalog(store, KEYS).entries[0].pinned
    store.delete(ref.key)
    with pytest.raises(CheckpointError, match="was deleted just now"):
        pin(store, KEYS, entry, 60.0, 0.0)
    assert names(store, KEYS.pins) == [] and CommitLog(store, KEYS).chain() == []
