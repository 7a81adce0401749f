"""The norm of gradients that lie on several ranks, where DeepSpeed keeps none or a wrong one: at ZeRO 0 in fp32."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist

from orchestrator.runtime.tensor_parallel import Part, Parts


def gradient_norm(model: torch.nn.Module, parts: Parts, group: Any = None, *, counts_whole: bool = True) -> torch.Tensor:
    """Of each parameter of the whole model once. Scalar, the same on all ranks of `group`, which hold the model between them; None: each
    holds all of it.

    `counts_whole`: whether this rank counts what it holds whole, because no other rank of the group holds that or all others leave it
    to this one.
    """
    held = [parameter for parameter in model.parameters() if parameter.grad is not None]
    norm = torch.nn.utils.get_total_norm([weight.grad for weight in held if _counts(parts[id(weight)], counts_whole)])
    if group is None:
        return norm
    squares = norm.double() ** 2
    dist.all_reduce(squares, group=group)
    return squares.sqrt()


def _counts(part: Part, counts_whole: bool) -> bool:
    return not part.lent and (counts_whole or part.block is not None)
