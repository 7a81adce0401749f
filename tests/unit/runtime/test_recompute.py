"""What a block computes again, and which models cannot."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from orchestrator.errors import ConfigError
from orchestrator.runtime.recompute import checkpoint_activations
from orchestrator.spec import ActivationCheckpointing


class Block(nn.Module):
    def __init__(self, norm=nn.LayerNorm):
        super().__init__()
        self.norm, self.up, self.experts = norm(8), nn.Linear(8, 8), nn.ModuleList([nn.Linear(8, 8)])

    def forward(self, x):
        heads = self.up(self.norm(x)).view(-1, 2, 4, 4)
        x = x + nn.functional.scaled_dot_product_attention(heads, heads, heads).reshape(x.shape)
        return x + self.experts[0](torch.tanh(x))


class Stack(nn.Module):
    def __init__(self, norm=nn.LayerNorm):
        super().__init__()
        self.blocks = nn.ModuleList([Block(norm), Block(norm)])

    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        return x


class Count(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.calls = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.calls[str(function.overloadpacket).removeprefix("aten.")] += 1
        return function(*args, **kwargs or {})


def backward(how):
    """(operators of the backward pass, gradients)."""
    torch.manual_seed(0)
    model = Stack()
    names = list(model.state_dict())
    checkpoint_activations(model, how)
    assert list(model.state_dict()) == names
    loss = (model(torch.randn(4, 8)) ** 2).sum()
    with Count() as count:
        loss.backward()
    return count.calls, [parameter.grad for parameter in model.parameters()]


def test_full_computes_all_again_and_selective_neither_products_nor_attention():
    (none, expected), (full, of_full), (selective, of_selective) = (backward(how) for how in ActivationCheckpointing)
    attention = next(name for name in full if name.startswith("_scaled_dot_product") and "backward" not in name)
    assert (none["addmm"], none["tanh"], none[attention]) == (0, 0, 0)
    assert (full["addmm"], full["tanh"], full[attention]) == (4 - 2, 2, 2)  # nothing needs a block's last product again
    assert (selective["addmm"], selective["tanh"], selective[attention]) == (0, 2, 0)
    for found in (of_full, of_selective):
        assert all(torch.equal(own, other) for own, other in zip(found, expected, strict=True))


def test_without_gradients_nothing_is_kept():
    model = Stack()
    checkpoint_activations(model, ActivationCheckpointing.full)
    with torch.no_grad():
        assert not model(torch.randn(4, 8)).requires_grad


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (nn.Sequential(nn.Linear(8, 8)), "the model Sequential has no blocks"),
        (Stack(nn.BatchNorm1d), "the model's BatchNorm1d would count a batch twice"),
    ],
)
def test_models_that_cannot_are_refused(model, said):
    with pytest.raises(ConfigError, match=f"^training.activation_checkpointing=full is not possible: {said}.*allowed is none"):
        checkpoint_activations(model, ActivationCheckpointing.full)
    checkpoint_activations(model, ActivationCheckpointing.none)
