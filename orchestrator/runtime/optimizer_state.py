"""What each optimizer keeps beside a tensor of masters, and which of it can be cut like the masters."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from orchestrator.errors import ConfigError
from orchestrator.runtime.lion import Lion
from orchestrator.runtime.muon import Muon


def ensure_state(optimizer: torch.optim.Optimizer, master: torch.Tensor) -> None:
    """What torch would make at the first step: zeros, so making it now changes nothing."""
    state = optimizer.state[master]
    if isinstance(optimizer, torch.optim.Adam | torch.optim.AdamW):
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32, device=master.device)  # where the fused one counts
            state["exp_avg"] = torch.zeros_like(master.detach())
            state["exp_avg_sq"] = torch.zeros_like(master.detach())
    elif isinstance(optimizer, torch.optim.SGD):
        if optimizer.param_groups[0]["momentum"] and state.get("momentum_buffer") is None:
            state["momentum_buffer"] = torch.zeros_like(master.detach())
    elif isinstance(optimizer, Lion):
        if not state:
            state["exp_avg"] = torch.zeros_like(master.detach())
    elif isinstance(optimizer, Muon):
        optimizer.ensure_state(master)
    elif isinstance(optimizer, torch.optim.Adafactor):
        if not state:
            _begin_adafactor(state, master)
    else:
        raise ConfigError(f"the optimizer {type(optimizer).__name__} is not supported: its state cannot be cut.")


def _begin_adafactor(state: dict[str, Any], master: torch.Tensor) -> None:
    """Mean squares of the rows and columns of the last two dimensions; of a vector, of each element."""
    state["step"] = torch.zeros((), dtype=torch.float32)
    if master.dim() > 1:
        state["row_var"] = master.new_zeros((*master.shape[:-1], 1), requires_grad=False)
        state["col_var"] = master.new_zeros((*master.shape[:-2], 1, master.shape[-1]), requires_grad=False)
    else:
        state["variance"] = torch.zeros_like(master.detach())


def element_wise(state: Mapping[str, Any], master: torch.Tensor) -> dict[str, torch.Tensor]:
    return {key: value.view(-1) for key, value in state.items() if torch.is_tensor(value) and value.shape == master.shape and key != "step"}


def statistics(state: Mapping[str, Any], master: torch.Tensor) -> dict[str, torch.Tensor]:
    """Adafactor's mean squares of rows and columns where their shapes are their own: a matrix of one row keeps one of them element-wise."""
    return {key: state[key] for key in ("row_var", "col_var") if key in state and state[key].shape != master.shape}
