"""The few things that all ranks agree on outside of DeepSpeed: texts of one rank, votes and sums."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist


def broadcast_text(text: str, device: torch.device, source: int = 0) -> str:
    """The `text` of rank `source` on every rank. No pickle crosses the line."""
    return broadcast_bytes(text.encode(), device, source).decode()


def broadcast_bytes(content: bytes, device: torch.device, source: int = 0) -> bytes:
    """The `content` of rank `source` on every rank."""
    length = torch.tensor([len(content)], device=device)
    dist.broadcast(length, source)
    if not int(length):
        return b""
    data = torch.empty(int(length), dtype=torch.uint8, device=device)
    if dist.get_rank() == source:
        data.copy_(torch.frombuffer(bytearray(content), dtype=torch.uint8))
    dist.broadcast(data, source)
    return data.cpu().numpy().tobytes()


def all_agree(mine: bool, device: torch.device) -> bool:
    """Whether it holds on every rank."""
    vote = torch.tensor([int(mine)], device=device)
    dist.all_reduce(vote, dist.ReduceOp.MIN)
    return bool(vote)


def sum_over_ranks(values: Sequence[float], device: torch.device) -> list[float]:
    """Element-wise, in float64, with one small all-reduce."""
    total = torch.tensor(list(values), dtype=torch.float64, device=device)
    dist.all_reduce(total)
    return [float(value) for value in total.tolist()]
