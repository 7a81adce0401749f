"""Texts that share a block of tokens without seeing each other."""

from __future__ import annotations

import inspect

import torch
from torch import nn

from .requirements import require


def document_inputs(tokens: torch.Tensor, end: int) -> dict[str, torch.Tensor]:
    """What a transformers decoder takes beside `input_ids` so that tokens see those of their own text only. `tokens` int64[samples, n].

    `position_ids` int64[samples, n] begin at 0 in each text, whose first token is `end`; `attention_mask` bool[samples, 1, n, n] is True
    where a row's token may see a column's.
    """
    first = tokens == end
    places = torch.arange(tokens.shape[1], device=tokens.device).expand_as(tokens)
    begins = torch.where(first, places, 0).cummax(1).values
    same = begins[:, :, None] == begins[:, None, :]
    causal = places[:, :, None] >= places[:, None, :]
    return {"position_ids": places - begins, "attention_mask": (same & causal)[:, None]}


def check_positions(model: nn.Module) -> None:
    """Raises ConfigError for a model that takes no positions: its texts would not begin at 0."""
    taken = "position_ids" in inspect.signature(model.forward).parameters
    require(taken, "workload.options.document_mask", True, f"false for {type(model).__name__}, which takes no position_ids")
