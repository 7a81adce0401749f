"""Lion in plain torch: DeepSpeed's own is compiled when it is first used, and its fused one is for GPUs only."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch


class Lion(torch.optim.Optimizer):  # type: ignore[misc]
    """EvoLved Sign Momentum (Chen et al. 2023, arXiv:2302.06675, algorithm 2) with decoupled weight decay.

    c = b1 m + (1 - b1) g;  w -= lr (sign(c) + decay w);  m = b2 m + (1 - b2) g.  Element by element, so that its state `exp_avg` (m) can
    be cut anywhere.
    """

    def __init__(self, params: Iterable[Any], lr: float, betas: tuple[float, float], weight_decay: float) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:
        """`closure` is torch's interface and must be None."""
        if closure is not None:
            raise ValueError("Lion takes no closure")
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, parameter.grad, **{name: group[name] for name in ("lr", "betas", "weight_decay")})

    def _update(self, weight: torch.Tensor, gradient: torch.Tensor, lr: float, betas: tuple[float, float], weight_decay: float) -> None:
        state = self.state[weight]
        if not state:
            state["exp_avg"] = torch.zeros_like(weight)
        momentum = state["exp_avg"]
        direction = momentum.lerp(gradient, 1 - betas[0]).sign_()
        weight.mul_(1 - lr * weight_decay).add_(direction, alpha=-lr)
        momentum.lerp_(gradient, 1 - betas[1])
