"""Ranks that restore together, with real gloo groups: every layout from every other, each byte from the store once, and faults on one
rank that all agree on. `python test_restore_exchange.py CASE` is one case; its ranks are forked from that process."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from itertools import cycle
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from patience import TRAINING_LIMIT_S

from orchestrator.checkpoints.pieces import StatePiece
from orchestrator.checkpoints.restore import restore
from orchestrator.errors import CheckpointError, CorruptObject, IncompatibleCheckpoint, ObjectNotFound, StorageUnavailable
from orchestrator.runtime.exchange import Ranks

sys.path.append(str(Path(__file__).parent))

from forked import run_ranks
from restores import CUTS, SHAPES, Counting, Failing, Flipping, Near, check_loaded, pieces, saved, state, zeros

WORLDS = (1, 2, 3)
NODES = {"shared": lambda rank: None, "apart": str, "mixed": lambda rank: str(rank // 2)}
"""Who shares memory: all, nobody, ranks 0 and 1."""


@pytest.mark.slow
@pytest.mark.parametrize(
    "case",
    [
        "every_layout_from_every_other", "replicas_read_once", "many_rounds", "a_damaged_block", "a_block_damaged_on_the_way",
        "a_missing_object", "a_store_that_fails", "a_fault_of_the_program", "another_model_on_one_rank", "a_tensor_left_over",
        "what_is_near", "damage_of_what_is_near",
    ],
)  # fmt: skip
def test_restore_together(case):
    root = Path(__file__).parents[3]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "PYTHONPATH": f"{root}:{root / 'tests'}"}
    done = subprocess.run([sys.executable, __file__, case], env=environment, capture_output=True, text=True, timeout=TRAINING_LIMIT_S)
    assert done.returncode == 0, done.stderr[-4000:]


def expect(kind, message, work, rank):
    """`work` raises the same on every rank, and the group is still of use."""
    try:
        work()
    except kind as error:
        assert message in str(error), error
    else:
        raise AssertionError(f"rank {rank} noticed nothing")
    everybody = torch.tensor([1])
    dist.all_reduce(everybody)
    assert int(everybody) == dist.get_world_size()


def every_layout_from_every_other():
    made = [saved(cut, world) for cut in CUTS for world in WORLDS]

    def work(rank):
        nodes = cycle(NODES.values())
        for store, manifest in made:
            for cut in CUTS:
                check_loaded(store, manifest, cut, world, rank, next(nodes)(rank))

    for world in WORLDS:
        run_ranks(world, work)


def replicas_read_once():
    store, manifest = saved("flat", 2)

    def work(rank):
        read = torch.tensor([float(check_loaded(store, manifest, "replicated", 3, rank))])
        shares = [torch.zeros(1) for _ in range(3)]
        dist.all_gather(shares, read)
        assert all(share > 0 for share in shares), shares

    run_ranks(3, work)


def many_rounds():
    """More blocks than there are slots; and more runs than one round has, of a rank that wants them alone."""
    count = 90 * 4 * 1024 * 1024 + 5
    store, manifest = saved("flat", 2, tensors={"param": {"long": torch.arange(count, dtype=torch.int32)}} | no_shapes(long=(count,)))

    def work(rank):
        for node in (None, str(rank)):
            data = torch.zeros(count, dtype=torch.int32)
            piece = StatePiece(name="long", role="param", global_shape=(count,), start=0, data=data)
            counting = Counting(store)
            restore(counting, manifest, [piece], Ranks(torch.device("cpu"), node))
            assert torch.equal(data, torch.arange(count, dtype=torch.int32))
            assert counting.read_bytes < 0.6 * data.nbytes
        data.zero_()
        restore(counting, manifest, [piece] if rank == 0 else [], Ranks(torch.device("cpu"), str(rank)))
        assert torch.equal(data, torch.arange(count, dtype=torch.int32)) or rank == 1

    run_ranks(2, work)


def no_shapes(**shapes):
    SHAPES.update(shapes)
    return {}


def damaged(rank, read):
    """(store, manifest, wanted) of a rank that reads through `read`; rank 1 alone holds what the second writer wrote."""
    store, manifest = saved("each", 2)
    return read(store, manifest.segments[1].key), manifest, pieces(zeros(), "each", 2, rank)


def restored_by_two(read, node=None):
    """The work of a rank: the store is read through `read(store, key of the second writer's segment)` on rank 1 only."""

    def work(rank):
        store, manifest, wanted = damaged(rank, read if rank == 1 else lambda store, key: store)
        restore(store, manifest, wanted, Ranks(torch.device("cpu"), str(rank)))
        return wanted

    return work


def a_damaged_block():
    work = restored_by_two(lambda store, key: Flipping(store, key, 10**9))
    run_ranks(2, lambda rank: expect(CorruptObject, "seg-00001-0000' block", lambda: work(rank), rank))


def a_block_damaged_on_the_way():
    work = restored_by_two(lambda store, key: Flipping(store, key, 1))

    def check(rank):
        for piece, expected in zip(work(rank), pieces(state(), "each", 2, rank), strict=True):
            assert torch.equal(piece.data, expected.data)

    run_ranks(2, check)


def a_missing_object():
    def without(store, key):
        store.delete(key)
        return store

    work = restored_by_two(without)
    run_ranks(2, lambda rank: expect(ObjectNotFound, "seg-00001-0000' is not in", lambda: work(rank), rank))


def a_store_that_fails():
    work = restored_by_two(lambda store, key: Failing(store, StorageUnavailable("503 SlowDown")))
    run_ranks(2, lambda rank: expect(StorageUnavailable, "503 SlowDown", lambda: work(rank), rank))


def a_fault_of_the_program():
    work = restored_by_two(lambda store, key: Failing(store, RuntimeError("a bug")))

    def check(rank):
        kind, message = (RuntimeError, "a bug") if rank == 1 else (CheckpointError, "rank 1 failed while it restored: RuntimeError: a bug")
        expect(kind, message, lambda: work(rank), rank)

    run_ranks(2, check)


def another_model_on_one_rank():
    store, manifest = saved("each", 2)

    def work(rank):
        wanted = pieces(zeros(), "each", 2, rank)
        if rank == 1:
            wanted.append(StatePiece(name="new", role="param", global_shape=(3,), start=0, data=torch.zeros(3)))
        restore(store, manifest, wanted, Ranks(torch.device("cpu")))

    run_ranks(2, lambda rank: expect(IncompatibleCheckpoint, "has no param of new", lambda: work(rank), rank))


def a_tensor_left_over():
    """AdamW's state is not Lion's, though its first moment has the same name."""
    store, manifest = saved("each", 2)

    def work(rank, needless):
        wanted = [piece for piece in pieces(zeros(), "each", 2, rank) if piece.role == "param"]
        restore(store, manifest, wanted, Ranks(torch.device("cpu")), needless=needless)

    def check(rank):
        expect(IncompatibleCheckpoint, "has exp_avg of w, which is not in this model", lambda: work(rank, ()), rank)
        work(rank, ("exp_avg",))

    run_ranks(2, check)


def what_is_near():
    """All of it is near rank 0, what the second writer wrote is near rank 1 too: the store itself is not read."""
    store, manifest = saved("flat", 2)
    keys = [segment.key for segment in manifest.segments]

    def work(rank):
        near = Near(store, keys if rank == 0 else keys[1:])
        wanted = pieces(zeros(), "replicated", 2, rank)
        restore(near, manifest, wanted, Ranks(torch.device("cpu"), str(rank)))
        for piece, expected in zip(wanted, pieces(state(), "replicated", 2, rank), strict=True):
            assert torch.equal(piece.data, expected.data)
        sizes = [segment.num_bytes for segment in manifest.segments]
        assert (near.read_bytes, near.near_bytes) == (0, sum(sizes) if rank == 0 else sizes[1])

    run_ranks(2, work)


def damage_of_what_is_near():
    """Costs a read of the store, not the commit."""
    store, manifest = saved("flat", 2)
    keys = [segment.key for segment in manifest.segments]

    def work(rank):
        near = Near(store, keys, damaged=rank == 1)
        wanted = pieces(zeros(), "replicated", 2, rank)
        restore(near, manifest, wanted, Ranks(torch.device("cpu"), str(rank)))
        for piece, expected in zip(wanted, pieces(state(), "replicated", 2, rank), strict=True):
            assert torch.equal(piece.data, expected.data)
        total = sum(segment.num_bytes for segment in manifest.segments)
        assert (near.near_bytes, near.origin.read_bytes) == (total, total if rank == 1 else 0)

    run_ranks(2, work)


if __name__ == "__main__":
    assert math.prod(SHAPES["w"]) * 4 > 16 * 1024 * 1024, "a tensor goes over from block to block"
    globals()[sys.argv[1]]()
