"""`python replicas.py`: three ranks hold the same state; bits are flipped on some. What each rank raises is compared here."""

from __future__ import annotations

import os
import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[3]), str(Path(__file__).parent)]
os.environ.update(OMP_NUM_THREADS="1", DS_ACCELERATOR="cpu", GLOO_SOCKET_IFNAME="lo")

import torch  # noqa: E402
import torch.distributed as dist  # noqa: E402
from forked import run_ranks  # noqa: E402

from orchestrator.errors import ReplicaDrift  # noqa: E402
from orchestrator.runtime.guard import check_replicas  # noqa: E402


def state():
    generator = torch.Generator().manual_seed(3)
    shapes = ((7, 5), (11,), (), (3, 2, 2))
    formats = (torch.float32, torch.bfloat16, torch.float64, torch.int64)
    return [torch.randn(shape, generator=generator).to(dtype) for shape, dtype in zip(shapes, formats, strict=True)]


def raised(tensors):
    try:
        check_replicas(50, tensors)
    except ReplicaDrift as error:
        return str(error), error.echo
    return None


def flip(tensor, bit):
    words = {2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()]
    flat = tensor.view(-1).view(words)
    flat[-1] ^= 1 << bit


def as_rank(rank):
    assert raised(state()) is None
    for index, bit in ((0, 0), (0, 30), (1, 7), (2, 62), (3, 1)):
        tensors = state()
        if rank == 1:
            flip(tensors[index], bit)
        wanted = "at step 50 1 of 4 tensors are not the same on all ranks: wrong on rank 1"
        assert raised(tensors) == (wanted, rank != 1), (index, bit, raised(tensors))
    tensors = state()
    flip(tensors[0], rank)
    assert raised(tensors)[0].endswith("wrong on ranks 0, 1, 2")
    dist.barrier()


if __name__ == "__main__":
    run_ranks(3, as_rank)
