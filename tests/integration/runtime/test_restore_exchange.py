"""Ranks that restore together, with real gloo groups: every layout from every other, each byte from the store once, and faults on one
rank that all agree on. `python test_restore_exchange.py CASE` is one case; its ranks are forked from that process."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from functools import cache
from itertools import cycle
from pathlib import Path

import pytest

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
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "PYTHONPATH": str(root)}
    done = subprocess.run([sys.executable, __file__, case], env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-4000:]


if __name__ == "__main__":
    sys.path[:0] = [str(Path(__file__).parent)]

import torch  # noqa: E402
import torch.distributed as dist  # noqa: E402

from orchestrator.checkpoints.manifest import assemble  # noqa: E402
from orchestrator.checkpoints.pieces import StatePiece  # noqa: E402
from orchestrator.checkpoints.plan import Box  # noqa: E402
from orchestrator.checkpoints.restore import restore  # noqa: E402
from orchestrator.checkpoints.write import write_checkpoint  # noqa: E402
from orchestrator.errors import CheckpointError, CorruptObject, IncompatibleCheckpoint, ObjectNotFound, StorageUnavailable  # noqa: E402
from orchestrator.runtime.exchange import Ranks  # noqa: E402
from orchestrator.storage import MemoryStore  # noqa: E402

SHAPES = {"w": (2101, 2303), "deep": (3, 5, 31, 70), "b": (11,), "scale": (), "half": (99, 151), "v": (40, 1), "counts": (7,)}
DTYPES = {"half": torch.bfloat16, "counts": torch.int64}
ROLES = ("param", "exp_avg")
CUTS = ("replicated", "flat", "each", "columns")
"""ZeRO 0; ZeRO 1 and 2; ZeRO 3; two tensor-parallel ranks, or as many as there are, with the rest on all."""


class Counting:
    """A store that counts what is read of segments."""

    def __init__(self, inner):
        self.url, self.read_bytes, self._inner = inner.url, 0, inner

    def read_into(self, key, start, buffer):
        self.read_bytes += len(buffer)
        self._inner.read_into(key, start, buffer)


@cache
def state():
    generator = torch.Generator().manual_seed(1)
    return {
        role: {
            name: torch.randint(-1000, 1000, shape, generator=generator).to(DTYPES.get(name, torch.float32))
            for name, shape in SHAPES.items()
        }
        for role in ROLES
    }


def zeros():
    return {role: {name: torch.zeros_like(tensor) for name, tensor in held.items()} for role, held in state().items()}


def num_bytes(tensors):
    return sum(tensor.nbytes for held in tensors.values() for tensor in held.values())


def pieces(tensors, cut, world, rank, once=False):
    """What a rank holds; `once`: of what several hold, it has a share of its own."""
    found = []
    for role, held in tensors.items():
        total, at = sum(tensor.numel() for tensor in held.values()), 0
        for name, tensor in held.items():
            size = tensor.numel()
            if cut == "columns" and name == "w":
                found.append(columns(role, name, tensor, world, rank))
                continue
            low, high = 0, size
            if cut == "each" or (once and cut != "flat"):
                low, high = size * rank // world, size * (rank + 1) // world
            elif cut == "flat":
                low, high = (min(max(total * number // world - at, 0), size) for number in (rank, rank + 1))
            at += size
            if low < high:
                found.append(StatePiece(name=name, role=role, global_shape=SHAPES[name], start=low, data=tensor.view(-1)[low:high]))
    return found


def columns(role, name, tensor, world, rank):
    """The columns are copied out; `put_back` writes them into the tensor."""
    low, high = (SHAPES[name][1] * number // world for number in (rank, rank + 1))
    block = Box((0, low), (SHAPES[name][0], high - low))
    data = tensor[:, low:high].reshape(-1).clone()
    return StatePiece(name=name, role=role, global_shape=SHAPES[name], start=0, data=data, block=block)


def saved(cut, world, store=None, tensors=None):
    """(store, manifest) of a checkpoint of this layout."""
    store = store or MemoryStore()
    indexes = [
        write_checkpoint(store, f"{cut}-{world}/", rank, pieces(tensors or state(), cut, world, rank, once=True), {})
        for rank in range(world)
    ]
    header = {"job_id": "job", "step": 1, "epoch": 1, "prefix": f"{cut}-{world}/", "world_size": world, "zero_stage": 0, "job_scalars": {}}
    return store, assemble(indexes, **header)


def check_loaded(store, manifest, cut, world, rank, node=None, most=1.1):
    """All that the rank holds is what was saved, and the ranks together have read it about once."""
    counting = Counting(store)
    wanted = pieces(zeros(), cut, world, rank)
    restore(counting, manifest, wanted, Ranks(torch.device("cpu"), node), needless=())
    for piece, expected in zip(wanted, pieces(state(), cut, world, rank), strict=True):
        assert torch.equal(piece.data, expected.data), (piece.role, piece.name, cut, world, rank, node)
    total = torch.tensor([counting.read_bytes])
    dist.all_reduce(total)
    assert num_bytes(state()) <= int(total) <= most * num_bytes(state()), (int(total), cut, world, node)
    return counting.read_bytes


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
    """More blocks than there are slots."""
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

    run_ranks(2, work)


def no_shapes(**shapes):
    SHAPES.update(shapes)
    return {}


class Flipping(Counting):
    """Flips a bit of what the first `times` reads of a segment give."""

    def __init__(self, inner, key, times):
        super().__init__(inner)
        self._key, self._times = key, times

    def read_into(self, key, start, buffer):
        super().read_into(key, start, buffer)
        if key == self._key and self._times > 0:
            self._times -= 1
            buffer[len(buffer) // 2] ^= 1


class Failing(Counting):
    def __init__(self, inner, error):
        super().__init__(inner)
        self._error = error

    def read_into(self, key, start, buffer):
        raise self._error


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


class Near(Counting):
    """Has the objects of `keys` itself."""

    def __init__(self, origin, keys, damaged=False):
        super().__init__(origin)
        self.origin, self.near_bytes = Counting(origin), 0
        self._keys, self._damaged = keys, damaged

    def near(self, key):
        return key in self._keys

    def read_into(self, key, start, buffer):
        if not self.near(key):
            return super().read_into(key, start, buffer)
        self.near_bytes += len(buffer)
        self._inner.read_into(key, start, buffer)
        buffer[0] ^= self._damaged
        return None


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
    from forked import run_ranks

    assert math.prod(SHAPES["w"]) * 4 > 16 * 1024 * 1024, "a tensor goes over from block to block"
    globals()[sys.argv[1]]()
