"""Activation checkpointing: blocks of a model keep little of their forward pass and compute it again for their backward pass.

The blocks of a model are the members of its outermost `nn.ModuleList`s: the layers of a transformer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts

from orchestrator.errors import ConfigError
from orchestrator.spec import ActivationCheckpointing

_FLAG = "training.activation_checkpointing"
_KEPT = (
    "mm", "addmm", "bmm", "baddbmm", "_scaled_dot_product_flash_attention", "_scaled_dot_product_flash_attention_for_cpu",
    "_scaled_dot_product_efficient_attention", "_scaled_dot_product_cudnn_attention",
)  # fmt: skip
"""Operators of which `selective` keeps the results: those that cost more to compute than to keep."""


def checkpoint_activations(model: nn.Module, how: ActivationCheckpointing) -> None:
    """To be called before DeepSpeed gets the model. Raises ConfigError for a model that has no blocks, or blocks that count their calls."""
    if how is ActivationCheckpointing.none:
        return
    blocks = list(blocks_of(model))
    if not blocks:
        found = f"the model {type(model).__name__} has no blocks (members of an nn.ModuleList) to compute again"
        raise ConfigError(f"{_FLAG}={how.value} is not possible: {found}; allowed is none.")
    counting = next((part for block in blocks for part in block.modules() if _counts(part)), None)
    if counting is not None:
        found = f"the model's {type(counting).__name__} would count a batch twice in its running statistics"
        raise ConfigError(f"{_FLAG}={how.value} is not possible: {found}; allowed is none, or another norm.")
    options: dict[str, Any] = {"use_reentrant": False}
    if how is ActivationCheckpointing.selective:
        options["context_fn"] = partial(create_selective_checkpoint_contexts, _kept_operators())
    for block in blocks:
        block.forward = _forgetful(block.forward, options)


def blocks_of(module: nn.Module) -> Iterator[nn.Module]:
    """Members of the outermost module lists."""
    for child in module.children():
        if isinstance(child, nn.ModuleList):
            yield from child
        else:
            yield from blocks_of(child)


def _forgetful(forward: Callable[..., Any], options: dict[str, Any]) -> Callable[..., Any]:
    def run(*args: Any, **kwargs: Any) -> Any:
        if torch.is_grad_enabled():
            return checkpoint(forward, *args, **options, **kwargs)
        return forward(*args, **kwargs)

    return run


def _counts(module: nn.Module) -> bool:
    return isinstance(module, nn.modules.batchnorm._NormBase) and module.track_running_stats


def _kept_operators() -> list[Any]:
    return [getattr(torch.ops.aten, name).default for name in _KEPT]
