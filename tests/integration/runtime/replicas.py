"""`python replicas.py`: ranks hold the same state; bits are flipped on some. What each rank raises is compared here.

Three ranks with tensors of all formats, then two with engines that have trained a network with running means.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[3]), str(Path(__file__).parent)]
os.environ.update(OMP_NUM_THREADS="1", DS_ACCELERATOR="cpu", GLOO_SOCKET_IFNAME="lo")

import layouts  # noqa: E402
import matrix  # noqa: E402
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


def as_trained_rank(rank):
    for stage in (0, 1, 2):
        cell = layouts.Cell(stage, 2)
        engine, layout = matrix.build(cell)
        for number in (1, 2, 3):
            matrix.step(engine, layout, number, rank, cell)
        own = raised([engine.module.norm.running_mean])
        assert own is not None, "the ranks' batches move it apart"
        assert raised(engine.replicated()) is None, stage
        if rank == 1:
            flip(engine.module.frozen.weight, 3)
        assert raised(engine.replicated())[0].startswith("at step 50 1 of "), stage
        if stage == 0:
            engine, layout = matrix.build(cell)
            matrix.step(engine, layout, 1, rank, cell)
            moment = next(piece.data for piece in engine.state.trained_pieces() if piece.role == "exp_avg")
            if rank == 1:
                flip(moment, 3)
            assert raised(engine.replicated()) is not None
    dist.barrier()


if __name__ == "__main__":
    run_ranks(3, as_rank)
    layouts.set_up()
    matrix.disable_shared_memory_op()
    run_ranks(2, as_trained_rank)
