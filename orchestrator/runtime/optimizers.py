"""Which parameters are trained how, and the optimizers that DeepSpeed does not make from its config."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from deepspeed.moe.utils import configure_moe_param_groups

from orchestrator.errors import WorkloadError
from orchestrator.runtime.lion import Lion
from orchestrator.runtime.muon import Muon, hidden_matrices
from orchestrator.spec import OptimizerName, OptimizerSpec


def parameter_groups(model: torch.nn.Module) -> list[dict[str, Any]]:
    """Matrices, and without weight decay what has one dimension: norms, biases."""
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not trainable:
        raise WorkloadError("build_model() returned a model without a trainable parameter.")
    matrices = [parameter for parameter in trainable if parameter.dim() > 1]
    vectors = [parameter for parameter in trainable if parameter.dim() <= 1]
    groups: list[dict[str, Any]] = [
        {"params": matrices, "name": "matrices"},  # DeepSpeed splits a group with experts by its name
        {"params": vectors, "name": "vectors", "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def own_optimizer(asked: OptimizerSpec, model: torch.nn.Module, experts: bool = False) -> Callable[[Any], torch.optim.Optimizer] | None:
    """What makes an optimizer of parameter groups, where DeepSpeed does not make it from its config.

    `experts` dealt out need groups of their own, which DeepSpeed makes for its own optimizers only.
    """
    shared: dict[str, Any] = {"lr": asked.lr, "weight_decay": asked.weight_decay}
    if asked.name is OptimizerName.lion:
        lion: Callable[[Any], torch.optim.Optimizer] = partial(Lion, betas=asked.betas, **shared)
        return (lambda groups: lion(configure_moe_param_groups(groups))) if experts else lion
    if asked.name is OptimizerName.muon:
        hidden = hidden_matrices(model)
        return partial(Muon, hidden=hidden, betas=asked.betas, eps=asked.eps, momentum=asked.momentum, **shared)
    if asked.name is OptimizerName.adafactor:
        return partial(torch.optim.Adafactor, **shared)
    return None
