"""Save at one layout, restore at another; damage and crash at every boundary."""

from __future__ import annotations

import random
import threading

import pytest
import torch
from checkpoint_writer import write_checkpoint
from patience import LIMIT_S

from orchestrator.checkpoints.commit import CommitLog
from orchestrator.checkpoints.pieces import StatePiece
from orchestrator.checkpoints.plan import Box
from orchestrator.checkpoints.restore import export_tensors, restore
from orchestrator.checkpoints.retention import Policy, apply_retention
from orchestrator.errors import CheckpointError, CorruptObject, CoverageError, FencedError, IncompatibleCheckpoint, StorageError
from orchestrator.paths import JobKeys
from orchestrator.storage import CrashPoint, Fault, FaultyStore, MemoryStore

KEYS = JobKeys("job-1")
SHAPES = {"w": (7, 5), "b": (11,), "deep": (3, 4, 5), "scale": ()}


def state(step):
    """Global tensors of a step, by name."""
    generator = torch.Generator().manual_seed(step)
    made = {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}
    return {**made, "half": torch.randn(9, generator=generator).to(torch.bfloat16)}


def pieces(tensors, world, rank):
    """This rank's share, as ZeRO cuts: one flat interval of the concatenation of all tensors."""
    total = sum(t.numel() for t in tensors.values())
    low, high, at = total * rank // world, total * (rank + 1) // world, 0
    found = []
    for name, tensor in tensors.items():
        a, b = max(low - at, 0), min(high - at, tensor.numel())
        if a < b:
            flat = tensor.reshape(-1)[a:b]
            found.append(StatePiece(name=name, role="param", global_shape=tuple(tensor.shape), start=a, data=flat))
        at += tensor.numel()
    return found


def save(store, log, epoch, step, world=2):
    prefix = KEYS.checkpoint(step, epoch, f"u{epoch}x{step}")
    for rank in range(world):
        write_checkpoint(store, prefix, rank, pieces(state(step), world, rank), {"rank": rank})
    return log.commit(
        epoch=epoch, step=step, prefix=prefix, num_writers=world, world_size=world, zero_stage=1, job_scalars={"step": step}
    )


def load(store, log, ref, world=1):
    manifest = log.load_manifest(ref)
    tensors = {name: torch.zeros_like(tensor) for name, tensor in state(0).items()}
    for rank in range(world):
        restore(store, manifest, pieces(tensors, world, rank))
    return tensors


def same(a, b):
    return all(torch.equal(a[name], b[name]) for name in a)


def column_pieces(tensors, cuts, world, rank):
    """This rank's share where two tensor-parallel ranks hold `w` cut at column `cuts`, each cut again by ZeRO; the rest whole on rank 0."""
    share, part = divmod(rank, 2)
    low, high = ((0, cuts), (cuts, SHAPES["w"][1]))[part]
    block = tensors["w"][:, low:high].reshape(-1)
    a, b = (block.numel() * 2 * n // world for n in (share, share + 1))
    held = StatePiece(
        name="w", role="param", global_shape=SHAPES["w"], start=a, data=block[a:b], block=Box((0, low), (SHAPES["w"][0], high - low))
    )
    return [held] + [piece for piece in pieces(tensors, 1, 0) if rank == 0 and piece.name != "w"]


@pytest.mark.parametrize("world", [2, 4, 6])
def test_blocks_of_tensor_parallel_ranks_become_whole_tensors_and_other_blocks(world):
    store = MemoryStore()
    log = CommitLog(store, KEYS)
    prefix, epoch = KEYS.checkpoint(1, 1, "u"), log.begin_epoch("a").number
    for rank in range(world):
        write_checkpoint(store, prefix, rank, column_pieces(state(1), 3, world, rank), {})
    ref = log.commit(epoch=epoch, step=1, prefix=prefix, num_writers=world, world_size=world, zero_stage=1, job_scalars={})
    assert same(load(store, log, ref, 3), state(1))
    for rank in range(4):
        wanted = column_pieces({**state(1), "w": torch.zeros(SHAPES["w"])}, 1, 4, rank)
        restore(store, log.load_manifest(ref), wanted)
        assert torch.equal(wanted[0].data, column_pieces(state(1), 1, 4, rank)[0].data)


def test_a_block_that_no_rank_saved_is_no_commit():
    store = MemoryStore()
    log = CommitLog(store, KEYS)
    prefix, epoch = KEYS.checkpoint(1, 1, "u"), log.begin_epoch("a").number
    write_checkpoint(store, prefix, 0, column_pieces(state(1), 3, 2, 0), {})
    with pytest.raises(CoverageError, match="param of w: 14 of 35 elements are in no slice"):
        log.commit(epoch=epoch, step=1, prefix=prefix, num_writers=1, world_size=1, zero_stage=1, job_scalars={})


class Meeting(MemoryStore):
    """Who reads an index waits until three others do."""

    def __init__(self):
        super().__init__()
        self.readers = threading.Barrier(4, timeout=LIMIT_S)

    def get(self, key, start=0, length=None):
        if "/idx/" in key:
            self.readers.wait()
        return super().get(key, start, length)


def test_what_the_writers_have_stored_is_read_beside_each_other():
    store = Meeting()
    log = CommitLog(store, KEYS)
    ref = save(store, log, log.begin_epoch("a").number, 10, world=8)
    assert same(load(store, log, ref), state(10))


@pytest.mark.parametrize("saved", [1, 2, 3, 5])
@pytest.mark.parametrize("loaded", [1, 2, 4])
def test_any_world_opens_any_checkpoint(saved, loaded):
    store = MemoryStore()
    log = CommitLog(store, KEYS)
    ref = save(store, log, log.begin_epoch("a").number, 10, saved)
    assert same(load(store, log, ref, loaded), state(10))
    assert set(export_tensors(store, log.load_manifest(ref))) == set(state(0))


def test_the_chain_follows_the_bases_and_leaves_suspects_out():
    store = MemoryStore()
    log = CommitLog(store, KEYS)
    first = log.begin_epoch("a").number
    one, two = save(store, log, first, 1), save(store, log, first, 2)
    assert [ref.step for ref in log.begin_epoch("b").commits] == [2, 1]
    log.mark_suspect(two.key, "flipped")
    third = log.begin_epoch("c")
    assert [ref.key for ref in third.commits] == [one.key]
    assert save(store, log, third.number, 2).epoch == third.number
    assert [(ref.epoch, ref.step) for ref in log.chain()] == [(third.number, 2), (first, 1)]


def test_a_twin_of_an_older_epoch_cannot_commit_and_what_it_slips_in_does_not_count():
    store = MemoryStore()
    log = CommitLog(store, KEYS)
    old = log.begin_epoch("twin").number
    save(store, log, old, 1)
    new = log.begin_epoch("owner").number
    with pytest.raises(FencedError, match="owns the job"):
        save(store, log, old, 2)
    store.create(KEYS.commit(old, 3), store.get(KEYS.commit(old, 1)))
    save(store, log, new, 2)
    assert [(ref.epoch, ref.step) for ref in log.chain()] == [(new, 2), (old, 1)]


def test_a_missing_writer_is_no_commit():
    store = MemoryStore()
    log = CommitLog(store, KEYS)
    epoch = log.begin_epoch("a").number
    prefix = KEYS.checkpoint(1, epoch, "u")
    write_checkpoint(store, prefix, 0, pieces(state(1), 2, 0), {})
    with pytest.raises(CoverageError, match="no slice"):
        log.commit(epoch=epoch, step=1, prefix=prefix, num_writers=1, world_size=2, zero_stage=1, job_scalars={})
    assert log.chain() == []


def count_calls():
    store = FaultyStore(MemoryStore())
    scenario(store)
    return store.calls.total()


def scenario(store):
    """Two epochs, three commits, retention."""
    log = CommitLog(store, KEYS)
    epoch = log.begin_epoch("a").number
    save(store, log, epoch, 1)
    save(store, log, epoch, 2)
    epoch = log.begin_epoch("b").number
    save(store, log, epoch, 3, world=3)
    apply_retention(store, KEYS, Policy(keep_last=2))


@pytest.mark.parametrize("kind", ["crash_before", "crash_after", "lost_answer", "unavailable"])
def test_a_crash_at_any_request_leaves_the_newest_good_commit(kind):
    calls = count_calls()
    assert calls > 40
    for number in range(1, calls + 1):
        inner = MemoryStore()
        committed_before = 0
        try:
            scenario(FaultyStore(inner, [Fault(kind=kind, number=number)]))
            committed_before = 3
        except (CrashPoint, StorageError, CheckpointError):
            committed_before = max((int(i.key[-17:-5]) for i in inner.list(KEYS.commits)), default=0)
        log = CommitLog(inner, KEYS)
        commits = log.begin_epoch("after").commits
        assert (commits[0].step if commits else 0) == committed_before, (kind, number)
        for ref in commits:
            assert same(load(inner, log, ref), state(ref.step)), (kind, number)


def test_every_flipped_bit_and_every_truncation_is_caught():
    rng = random.Random(5)
    store = MemoryStore()
    log = CommitLog(store, KEYS)
    ref = save(store, log, log.begin_epoch("a").number, 1)
    keys = [i.key for i in store.list(KEYS.checkpoints) if "idx" not in i.key] + [ref.key]
    for trial in range(50):
        key = rng.choice(keys)
        good = store.get(key)
        damaged = bytearray(good)
        if trial < 40:
            damaged[rng.randrange(len(damaged))] ^= 1 << rng.randrange(8)
        else:
            del damaged[rng.randrange(len(damaged)) :]
        store.put(key, bytes(damaged))
        with pytest.raises(CorruptObject) as caught:
            load(store, log, log.read(ref.key))
        assert key in str(caught.value)
        store.put(key, good)


def test_another_model_is_refused_by_its_first_difference():
    store = MemoryStore()
    log = CommitLog(store, KEYS)
    manifest = log.load_manifest(save(store, log, log.begin_epoch("a").number, 1))
    wrong = StatePiece(name="w", role="param", global_shape=(7, 6), start=0, data=torch.zeros(42))
    with pytest.raises(IncompatibleCheckpoint, match=r"w is float32\[7, 5\]"):
        restore(store, manifest, [wrong])
    absent = StatePiece(name="nothing", role="param", global_shape=(1,), start=0, data=torch.zeros(1))
    with pytest.raises(IncompatibleCheckpoint, match="nothing"):
        restore(store, manifest, [absent])


def test_retention_keeps_the_newest_and_removes_the_rest():
    store = MemoryStore()
    log = CommitLog(store, KEYS)
    epoch = log.begin_epoch("a").number
    for step in range(1, 6):
        save(store, log, epoch, step)
    write_checkpoint(store, KEYS.checkpoint(2, epoch, "torn"), 0, pieces(state(2), 2, 0), {})
    apply_retention(store, KEYS, Policy(keep_last=2))
    assert [ref.step for ref in log.chain()] == [5, 4]
    assert {i.key.split("/")[3][:12] for i in store.list(KEYS.checkpoints)} == {"000000000004", "000000000005"}
    epoch = log.begin_epoch("b").number
    save(store, log, epoch, 6)
    save(store, log, epoch, 7)
    apply_retention(store, KEYS, Policy(keep_last=2))
    assert [ref.step for ref in log.chain()] == [7, 6]
    assert [ref.step for ref in log.begin_epoch("c").commits] == [7, 6]
