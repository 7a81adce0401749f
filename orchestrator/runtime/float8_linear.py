"""torchao's linear layer as DeepSpeed and a GPU need it. Imported only by jobs that ask for fp8."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch.autograd.function import once_differentiable
from torch.nn import functional
from torchao.float8.float8_linear import Float8Linear, matmul_with_hp_or_float8_args

from orchestrator.runtime.accelerator import FLOAT8_MULTIPLE


class Linear(Float8Linear):  # type: ignore[misc]
    """Any number of tokens, and nothing kept of the weight between the passes but the parameter itself."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[..., in] -> [..., out]."""
        tokens = x.reshape(-1, x.shape[-1])
        missing = -len(tokens) % FLOAT8_MULTIPLE  # the gradient of the weight is a sum over tokens: one size of a product
        padded = functional.pad(tokens, (0, 0, 0, missing)) if missing else tokens
        # a graph keeps no views, and torch.compile knows torchao's product
        out = super().forward(padded) if torch.compiler.is_compiling() else self._product(padded)
        return out[: len(tokens)].view(*x.shape[:-1], -1)

    def _product(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = _Product.apply(x, self.weight, self.linear_mm_config, self.config)
        return out if self.bias is None else out + self.bias


class _Product(torch.autograd.Function):  # type: ignore[misc]
    """torchao's, which keeps a view of the weight for the backward pass. That would hold on to what ZeRO 3 has gathered and lets go."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, product: Any, config: Any) -> torch.Tensor:
        """x [tokens, in], weight [out, in] -> [tokens, out]."""
        out: torch.Tensor = matmul_with_hp_or_float8_args.forward(ctx, x, weight.t(), product, config)
        ctx.save_for_backward(x, weight)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, by_out: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        kept = SimpleNamespace(saved_tensors=(x, weight.t()), linear_mm_config=ctx.linear_mm_config, config=ctx.config)
        by_x, by_weight, *_ = matmul_with_hp_or_float8_args.backward(kept, by_out)
        return by_x, by_weight.t(), None, None
