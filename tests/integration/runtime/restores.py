"""State that ranks save and restore together, layouts of it, and stores that count, fail or have something near: for
`test_restore_exchange.py`."""

from __future__ import annotations

from functools import cache

import torch
import torch.distributed as dist
from checkpoint_writer import write_checkpoint

from orchestrator.checkpoints.manifest import assemble
from orchestrator.checkpoints.pieces import StatePiece
from orchestrator.checkpoints.plan import Box
from orchestrator.checkpoints.restore import restore
from orchestrator.runtime.exchange import Ranks
from orchestrator.storage import MemoryStore

SHAPES = {"w": (2101, 2303), "deep": (3, 5, 31, 70), "b": (11,), "scale": (), "half": (99, 151), "v": (40, 1), "counts": (7,)}
DTYPES = {"half": torch.bfloat16, "counts": torch.int64}
ROLES = ("param", "exp_avg")
CUTS = ("replicated", "flat", "each", "columns")
"""ZeRO 0; ZeRO 1 and 2; ZeRO 3; two tensor-parallel ranks, or as many as there are, with the rest on all."""


class Counting:
    """A store that counts what is read of segments."""

    def __init__(self, inner):
        self.url, self.read_bytes, self._inner = inner.url, 0, inner

    def read_into(self, key, start, *buffers):
        self.read_bytes += sum(map(len, buffers))
        self._inner.read_into(key, start, *buffers)


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


class Flipping(Counting):
    """Flips a bit of what the first `times` reads of a segment give."""

    def __init__(self, inner, key, times):
        super().__init__(inner)
        self._key, self._times = key, times

    def read_into(self, key, start, *buffers):
        super().read_into(key, start, *buffers)
        if key == self._key and self._times > 0:
            self._times -= 1
            longest = max(buffers, key=len)
            longest[len(longest) // 2] ^= 1


class Failing(Counting):
    def __init__(self, inner, error):
        super().__init__(inner)
        self._error = error

    def read_into(self, key, start, *buffers):
        raise self._error


class Near(Counting):
    """Has the objects of `keys` itself."""

    def __init__(self, origin, keys, damaged=False):
        super().__init__(origin)
        self.origin, self.near_bytes = Counting(origin), 0
        self._keys, self._damaged = keys, damaged

    def near(self, key):
        return key in self._keys

    def read_into(self, key, start, *buffers):
        if not self.near(key):
            return super().read_into(key, start, *buffers)
        self.near_bytes += sum(map(len, buffers))
        self._inner.read_into(key, start, *buffers)
        max(buffers, key=len)[0] ^= self._damaged
        return None
