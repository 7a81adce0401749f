"""State through a slab and the uploader into the store and back; what an uploader does when the store fails or an epoch is over."""

from __future__ import annotations

import threading

import pytest
import torch
from checkpoint_writer import write_checkpoint
from patience import LIMIT_S

from orchestrator.checkpoints import checksums, stage
from orchestrator.checkpoints import slab as slabs
from orchestrator.checkpoints.commit import CommitLog
from orchestrator.checkpoints.manifest import crc64
from orchestrator.checkpoints.near import NearStore
from orchestrator.checkpoints.pieces import StatePiece
from orchestrator.checkpoints.restore import restore
from orchestrator.checkpoints.slab import Slab, SlabState, read_staged, slab_path, slabs_of
from orchestrator.checkpoints.stage import StagingRing
from orchestrator.errors import StorageFull
from orchestrator.paths import JobKeys
from orchestrator.storage import FaultyStore, MemoryStore
from orchestrator.supervision.uploader import Pace, Uploader

KEYS = JobKeys("job")
STEM = "orchestrator-job-0"


def piece(name, values):
    return StatePiece(name=name, role="param", global_shape=(len(values),), start=0, data=torch.tensor(values))


class Told(list):
    """What the uploader says; `wait(n)` until it has said so much."""

    def __init__(self):
        self.changed = threading.Condition()

    def tell(self, message):
        with self.changed:
            self.append(message)
            self.changed.notify_all()

    def wait(self, count):
        with self.changed:
            assert self.changed.wait_for(lambda: len(self) >= count, LIMIT_S), self
        return self[count - 1]


class Node:
    """One rank's ring and the uploader of its node."""

    def __init__(self, folder, store, buffers=2):
        self.folder, self.store, self.told = folder, store, Told()
        self.ring = StagingRing(folder, f"{STEM}-0", buffers)
        self.uploader = Uploader(store, folder, STEM, self.told.tell)
        self.log = CommitLog(store, KEYS)
        self.epoch = self.log.begin_epoch("test").number

    def stage(self, step, trained, frozen=(), waiting=lambda: None):
        prefix = KEYS.checkpoint(step, self.epoch, f"u{step}")
        pieces = [piece(name, values) for name, values in trained.items()]
        constant = [piece(name, values) for name, values in dict(frozen).items()]
        slab = []
        self.ring.stage(
            pieces, lambda: constant, waiting, slab.append, job_id="job", epoch=self.epoch, step=step, prefix=prefix, writer=0,
            scalars={"s": step},
        )  # fmt: skip
        self.ring.finish()
        return {"type": "staged", "rank": 0, "writer": 0, "epoch": self.epoch, "step": step, "checkpoint": prefix, "slab": str(slab[0])}

    def save(self, step, trained, frozen=()):
        """Stage, upload, commit."""
        staged, before = self.stage(step, trained, frozen), len(self.told)
        self.uploader.take(staged)
        saved = self.told.wait(before + 1)
        assert saved["type"] == "saved", saved
        return saved, self.log.commit(
            epoch=self.epoch, step=step, prefix=saved["checkpoint"], num_writers=1, world_size=1, zero_stage=0, job_scalars={}
        )


def read(store, ref, like):
    wanted = [piece(name, [0.0] * len(values)) for name, values in like.items()]
    restore(store, CommitLog(store, KEYS).load_manifest(ref), wanted)
    return {one.name: one.data.tolist() for one in wanted}


@pytest.fixture(autouse=True)
def small_segments(monkeypatch):
    monkeypatch.setattr(slabs, "SEGMENT_BYTES", 16384)


WEIGHTS = {"big": [float(n) for n in range(10_000)], "a": [1.0, 2.0], "b": [3.0]}


def test_what_was_staged_is_what_is_restored_and_comes_from_memory_while_it_is_there(tmp_path):
    node = Node(tmp_path, MemoryStore())
    _, first = node.save(1, WEIGHTS)
    changed = {**WEIGHTS, "a": [5.0, 6.0]}
    _, second = node.save(2, changed)
    assert len(node.log.load_manifest(second).segments) > 2
    counted = FaultyStore(node.store)
    near = NearStore(counted, tmp_path, STEM)
    assert read(near, second, WEIGHTS) == changed
    assert read(near, first, WEIGHTS) == WEIGHTS
    assert counted.calls["read_into"] == 0 < near.near_bytes
    _, third = node.save(3, WEIGHTS)  # takes the place of the first
    near = NearStore(counted, tmp_path, STEM)
    assert read(near, third, WEIGHTS) == read(near, first, WEIGHTS) == WEIGHTS
    assert counted.calls["read_into"] > 0


def test_checksums_are_taken_as_the_bytes_are_copied(tmp_path, monkeypatch):
    monkeypatch.setattr(checksums, "BLOCK_BYTES", 4096)
    monkeypatch.setattr(stage, "_COPY_BYTES", 1000)
    node = Node(tmp_path, MemoryStore())
    node.stage(1, {name: [0.0] * len(values) for name, values in WEIGHTS.items()}, {"frozen": [1.0] * 5000})
    node.ring = StagingRing(tmp_path, f"{STEM}-0", 1)  # what lies between the rows stays from the save before
    node.uploader.begin(node.epoch + 1)
    node.stage(2, {"b": [9.0] * 3000, **WEIGHTS})
    for path in slabs_of(tmp_path, STEM):
        staged, content = read_staged(path), Slab.open(path).content
        segments = [content[x.start : x.start + x.num_bytes] for x in slabs.arrange(staged.rows)]
        blocks = [[part[start : start + 4096] for start in range(0, len(part), 4096)] for part in segments]
        assert staged.crcs == tuple(tuple(map(crc64, some)) for some in blocks) and len(staged.crcs) > 1


def test_a_piece_is_converted_on_its_way_whatever_is_cut(tmp_path):
    """In segments of 4096 numbers; it comes back in both types, where several writers and readers cut it elsewhere."""
    store = MemoryStore()
    log = CommitLog(store, KEYS)
    epoch, held = log.begin_epoch("test").number, torch.arange(10_000).to(torch.bfloat16)

    def half(low, high, data):
        return StatePiece(name="w", role="param", global_shape=(10_000,), start=low, data=data[low:high], kept_as=torch.float32)

    prefix = KEYS.checkpoint(1, epoch, "u")
    for writer, (low, high) in enumerate(((0, 5001), (5001, 10_000))):
        write_checkpoint(store, prefix, writer, [half(low, high, held)], {})
    ref = log.commit(epoch=epoch, step=1, prefix=prefix, num_writers=2, world_size=2, zero_stage=0, job_scalars={})
    manifest = log.load_manifest(ref)
    assert {one.dtype for one in manifest.slices} == {"float32"} and len(manifest.slices) == 4
    assert sum(segment.num_bytes for segment in manifest.segments) >= 4 * 10_000
    for dtype in (torch.bfloat16, torch.float32):
        found = torch.zeros(10_000, dtype=dtype)
        restore(store, manifest, [half(0, 3333, found), half(3333, 10_000, found)])
        assert torch.equal(found, held.to(dtype))


def test_frozen_state_is_stored_once_also_by_a_process_after_this_one(tmp_path):
    node = Node(tmp_path, MemoryStore())
    frozen = {"frozen": [float(n) for n in range(9000)]}
    saved, first = node.save(1, {"a": [1.0]}, frozen)
    assert saved["num_bytes"] > 36_000
    node.ring = StagingRing(tmp_path, f"{STEM}-0", 2)  # the rank was killed
    node.uploader = Uploader(node.store, tmp_path, STEM, node.told.tell)  # and the uploader too
    saved, second = node.save(2, {"a": [2.0]}, frozen)
    assert saved["num_bytes"] < 5000
    assert read(node.store, first, {"a": [0.0], **frozen}) == {"a": [1.0], **frozen}
    assert read(node.store, second, {"a": [0.0], **frozen}) == {"a": [2.0], **frozen}
    own = [segment.key for segment in node.log.load_manifest(second).segments if segment.key.startswith(second.prefix)]
    assert len(own) == 1


def test_an_epoch_stores_frozen_state_anew_because_the_bytes_of_the_one_before_may_be_damaged(tmp_path):
    node = Node(tmp_path, MemoryStore())
    frozen = {"frozen": [float(n) for n in range(3000)]}
    node.save(1, {"a": [1.0]}, frozen)
    node.epoch = node.log.begin_epoch("test").number
    node.uploader.begin(node.epoch)
    _, second = node.save(1, {"a": [1.0]}, frozen)
    assert all(segment.key.startswith(second.prefix) for segment in node.log.load_manifest(second).segments)
    assert read(node.store, second, frozen) == frozen
    _, third = node.save(2, {"a": [2.0]}, frozen)
    assert not all(segment.key.startswith(third.prefix) for segment in node.log.load_manifest(third).segments)


def test_a_save_waits_while_all_slabs_are_on_their_way(tmp_path):
    node = Node(tmp_path, MemoryStore(), buffers=1)
    first = node.stage(1, WEIGHTS)
    waited = []

    def waiting():
        waited.append(1)
        if len(waited) == 1:
            node.uploader.take(first)

    second = node.stage(2, {**WEIGHTS, "b": [9.0]}, waiting=waiting)
    assert waited
    assert first["slab"] == second["slab"]
    assert node.told.wait(1)["step"] == 1
    node.uploader.take(second)
    node.ring.drain(lambda: None)
    assert [message["step"] for message in node.told] == [1, 2]
    assert read_staged(slabs_of(tmp_path, STEM)[0]).step == 2


class Full(MemoryStore):
    def put(self, key, data):
        raise StorageFull(f"no space left for '{key}'")


def test_a_store_that_fails_is_an_error_of_the_rank_which_does_not_end_as_if_all_were_saved(tmp_path):
    node = Node(tmp_path, MemoryStore())
    node.uploader = Uploader(Full(), tmp_path, STEM, node.told.tell)
    staged = node.stage(1, WEIGHTS)
    node.uploader.take(staged)
    error = node.told.wait(1)
    assert (error["type"], error["rank"], error["epoch"], error["end_reason"]) == ("error", 0, node.epoch, "STORAGE")
    assert "no space left" in error["message"]
    slab = Slab.open(slab_path(tmp_path, f"{STEM}-0", 0))
    assert slab.state is SlabState.STAGED
    node.uploader.begin(node.epoch + 1)
    assert slab.state is SlabState.FREE


def test_what_an_older_epoch_staged_is_not_sent(tmp_path):
    node = Node(tmp_path, MemoryStore())
    staged = node.stage(1, WEIGHTS)
    node.uploader.begin(node.epoch + 1)
    node.uploader.take(staged)
    node.ring.drain(lambda: None)
    assert not list(node.store.list(staged["checkpoint"]))
    assert not node.told


def test_the_beginning_of_an_epoch_leaves_what_it_has_staged_already(tmp_path):
    node = Node(tmp_path, MemoryStore())
    staged = node.stage(1, WEIGHTS)
    node.uploader.begin(node.epoch)  # a process that started slowly
    assert Slab.open(slab_path(tmp_path, f"{STEM}-0", 0)).state is SlabState.STAGED
    node.uploader.take(staged)
    node.ring.drain(lambda: None)
    assert node.told.wait(1)["type"] == "saved"


@pytest.mark.parametrize("num_bytes", [0, slabs.HEADER_BYTES])
def test_a_slab_whose_maker_was_killed_before_it_was_whole_is_none(tmp_path, num_bytes):
    node = Node(tmp_path, MemoryStore())
    for number in range(2):
        slab_path(tmp_path, f"{STEM}-0", number).write_bytes(bytes(num_bytes))
    with pytest.raises(FileNotFoundError, match="not whole yet"):
        Slab.open(slab_path(tmp_path, f"{STEM}-0", 0))
    node.uploader.begin(node.epoch)
    next_life = Node(tmp_path, node.store)
    next_life.uploader.take(next_life.stage(1, WEIGHTS))
    next_life.ring.drain(lambda: None)
    assert next_life.told.wait(1)["type"] == "saved"


def test_memory_that_is_not_there_is_said_before_the_copy(tmp_path, monkeypatch):
    def full(descriptor, offset, length):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.posix_fallocate", full)
    node = Node(tmp_path, MemoryStore())
    with pytest.raises(MemoryError, match=r"a checkpoint of 0.00 GB of this rank .* No space left on device.*checkpoint.buffers=1"):
        node.stage(1, WEIGHTS)
    assert not list(tmp_path.glob("*.slab"))


def test_the_pace_is_kept_over_all_threads():
    now, slept = [0.0], []

    def sleep(seconds):
        slept.append(seconds)
        now[0] += seconds

    pace = Pace(1000.0, lambda: now[0], sleep)
    for _ in range(4):
        pace.wait(500)
    assert slept == [0.0, 0.5, 0.5, 0.5]


def test_the_copy_runs_beside_its_caller_and_what_goes_wrong_is_raised_where_it_is_waited_for(tmp_path):
    ring, goes_on, seen = StagingRing(tmp_path, f"{STEM}-0", 1), threading.Event(), []

    def done(path):
        assert goes_on.wait(LIMIT_S)
        seen.append(path)
        raise ConnectionError("the agent is gone")

    told = {"job_id": "job", "epoch": 1, "step": 1, "prefix": KEYS.checkpoint(1, 1, "u"), "writer": 0, "scalars": {}}
    ring.stage([piece("a", [1.0])], list, lambda: None, done, **told)
    assert not seen
    goes_on.set()
    with pytest.raises(ConnectionError, match="the agent is gone"):
        ring.finish()
    assert seen
    ring.finish()  # once


def test_each_thread_takes_the_device_of_its_caller_before_it_does_anything(tmp_path):
    seen = []

    def note(what):
        seen.append((threading.current_thread().name, what))

    def here():
        caller = threading.current_thread().name
        return lambda: note(f"the device of {caller}")

    def constant():
        note("state")
        return []

    ring = StagingRing(tmp_path, f"{STEM}-0", 1, here)
    ring.prepare([piece("a", [1.0])])
    told = {"job_id": "job", "epoch": 1, "step": 1, "prefix": KEYS.checkpoint(1, 1, "u"), "writer": 0, "scalars": {}}
    ring.stage([piece("a", [1.0])], constant, lambda: None, lambda path: note("done"), **told)
    ring.finish()
    device = "the device of MainThread"
    assert seen == [("slabs", device), ("staging", device), ("staging", "state"), ("staging", "done")]


def test_a_slab_that_was_written_again_meanwhile_is_found_out_and_the_store_is_read(tmp_path):
    node = Node(tmp_path, MemoryStore(), buffers=1)
    _, ref = node.save(1, WEIGHTS)
    near = NearStore(node.store, tmp_path, STEM)
    Slab.open(slab_path(tmp_path, f"{STEM}-0", 0)).content[100] ^= 1
    assert read(near, ref, WEIGHTS) == WEIGHTS
