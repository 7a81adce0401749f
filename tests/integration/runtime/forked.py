"""Ranks forked from this process, which has imported all they need: for tests of what happens between them."""

from __future__ import annotations

import datetime
import os
import sys
import traceback
from collections.abc import Callable

import torch
import torch.distributed as dist

from orchestrator.ports import free_port


def run_ranks(world: int, work: Callable[[int], None], timeout_s: float = 600) -> None:
    """`work(rank)` in each rank of a gloo group; SystemExit if one of them fails. `timeout_s`: of a collective."""
    port = free_port()
    children = []
    for rank in range(world):
        child = os.fork()
        if child == 0:
            code = 1
            try:
                _join(rank, world, port, timeout_s)
                work(rank)
                code = 0
            except BaseException:
                traceback.print_exc()
                raise
            finally:
                sys.stderr.flush()
                os._exit(code)
        children.append(child)
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    if any(codes):
        raise SystemExit(f"ranks of a world of {world} ended with {codes}")


def _join(rank, world, port, timeout_s):
    os.environ.update(
        RANK=str(rank), WORLD_SIZE=str(world), LOCAL_RANK=str(rank), LOCAL_SIZE=str(world), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port)
    )
    torch.set_num_threads(1)
    dist.init_process_group("gloo", timeout=datetime.timedelta(seconds=timeout_s))
