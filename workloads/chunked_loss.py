"""Cross entropy of a decoder from hidden states and the head's weight, some tokens at a time.

The logits of a batch (tokens x vocabulary, in fp32) are the largest activation of a small model. Here those of one chunk of tokens exist
at a time: its loss, and its share of the gradients, are computed from them at once, so that the backward pass needs neither the logits
nor the head's weight again and multiplies as many matrices as the plain way does.

The sum is taken inside the head's forward pass, which runs inside the model's: where ZeRO 3 has the weight whole for that time.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from .known import CHAINS


def allow_chunks(model: nn.Module) -> bool:
    """Teach a transformers decoder `forward(..., targets=..., chunk=...)`; names of parameters and all else stay as they are.

    Returns whether it was: not where the logits are more than a linear layer of the hidden states (soft caps, scales), or less.
    """
    head = _head(model)
    known = type(model).__name__ in CHAINS  # others are tried, which takes a forward pass
    if type(head) is not nn.Linear or not (known or _head_is_all(model, head)):
        return False
    head.__class__ = ChunkedHead
    model.__class__ = type(type(model).__name__, (_SumsLosses, type(model)), {})
    return True


def cross_entropy(
    model: Any, inputs: dict[str, torch.Tensor], targets: torch.Tensor, reduction: str = "mean", chunk: int = 0
) -> torch.Tensor:
    """Scalar fp32: "mean" or "sum" over all `targets` int64[samples, tokens]. `model` is called once; it may be an engine around one.

    From all logits at once where `chunk` is 0, where the model was not taught, and where tensor parallelism has divided its head.
    """
    if chunk and isinstance(_head(getattr(model, "module", model)), ChunkedHead):
        total: torch.Tensor = model(**inputs, targets=targets, chunk=chunk)
        return total / targets.numel() if reduction == "mean" else total
    logits = model(**inputs).logits
    return functional.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), reduction=reduction)


class ChunkedHead(nn.Linear):  # type: ignore[misc]
    """A linear layer that, given targets, returns the sum of the losses in place of the logits."""

    def forward(self, hidden: torch.Tensor, targets: torch.Tensor | None = None, chunk: int = 0) -> torch.Tensor:
        """`hidden` [..., width]; `targets` int64 of the same leading shape -> scalar fp32."""
        if targets is None:
            logits: torch.Tensor = super().forward(hidden)
            return logits
        flat, wanted = hidden.reshape(-1, hidden.shape[-1]), targets.reshape(-1)
        if torch.is_grad_enabled():
            total: torch.Tensor = _SumOfLosses.apply(flat, self.weight, self.bias, wanted, chunk)
            return total
        parts = zip(flat.split(chunk), wanted.split(chunk), strict=True)
        logits_of = super().forward
        return torch.stack([functional.cross_entropy(logits_of(some).float(), their, reduction="sum") for some, their in parts]).sum()


class _SumsLosses:
    """Put before a transformers decoder's class."""

    def forward(self, *args: Any, targets: torch.Tensor | None = None, chunk: int = 0, **kwargs: Any) -> Any:
        if targets is None:
            return super().forward(*args, **kwargs)  # type: ignore[misc]
        model: Any = self
        hidden = model.base_model(*args, **kwargs).last_hidden_state
        return model.get_output_embeddings()(hidden, targets, chunk)


class _SumOfLosses(torch.autograd.Function):  # type: ignore[misc]
    """The gradient of a sum of cross entropies by the logits is softmax - one-hot, whatever comes after; so it is there before backward."""

    @staticmethod
    def forward(
        ctx: Any, hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, targets: torch.Tensor, chunk: int
    ) -> torch.Tensor:
        """hidden [tokens, width], weight [vocabulary, width], bias [vocabulary], targets int64[tokens]."""
        total = torch.zeros((), dtype=torch.float64, device=hidden.device)
        by_hidden, trains = torch.empty_like(hidden), ctx.needs_input_grad[1]
        by_weight = torch.zeros(weight.shape, dtype=torch.float32, device=weight.device) if trains else None
        by_bias = torch.zeros(len(weight), dtype=torch.float32, device=weight.device) if bias is not None else None
        for begin in range(0, len(hidden), chunk):
            some, wanted = hidden[begin : begin + chunk], targets[begin : begin + chunk].unsqueeze(1)
            log_shares = functional.log_softmax(functional.linear(some, weight, bias), -1, dtype=torch.float32)
            total -= log_shares.gather(1, wanted).sum(dtype=torch.float64)
            slope = log_shares.exp_().scatter_add_(1, wanted, torch.full_like(wanted, -1, dtype=torch.float32))
            narrow = slope.to(hidden.dtype)
            torch.mm(narrow, weight, out=by_hidden[begin : begin + chunk])
            if by_weight is not None:
                _add_product(by_weight, narrow.t(), some)
            if by_bias is not None:
                by_bias += slope.sum(0)
        ctx.save_for_backward(by_hidden, by_weight, by_bias)
        ctx.dtype = weight.dtype
        return total.float()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, by_total: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        by_hidden, *by_parameters = (None if part is None else part * by_total for part in ctx.saved_tensors)
        return by_hidden, *(None if part is None else part.to(ctx.dtype) for part in by_parameters), None, None


def _add_product(total: torch.Tensor, left: torch.Tensor, right: torch.Tensor) -> None:
    """`total` fp32 += left x right; sums over chunks keep fp32's precision also where the factors are of 16 bits."""
    if left.dtype is total.dtype:
        total.addmm_(left, right)
    else:
        total += left @ right


def _head(model: Any) -> Any:
    find = getattr(model, "get_output_embeddings", None)
    return find() if find else None


@torch.no_grad()
def _head_is_all(model: Any, head: nn.Module) -> bool:
    """Whether the model's logits of two tokens are its head's."""
    tokens = torch.tensor([[0, 1]], device=head.weight.device)
    was_training = model.training
    model.eval()
    logits, hidden = model(input_ids=tokens).logits, model.base_model(input_ids=tokens).last_hidden_state
    model.train(was_training)
    return torch.equal(logits, head(hidden))
