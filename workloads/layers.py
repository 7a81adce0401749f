"""A transformers decoder as a chain of layers, for pipelines: embedding, blocks, and the head with the last norm."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from transformers.masking_utils import create_causal_mask, create_sliding_window_causal_mask
from transformers.modeling_outputs import CausalLMOutputWithPast

from orchestrator.errors import WorkloadError

from .known import CHAINS

Batch = Mapping[str, torch.Tensor]
Tokens = Callable[[Batch], torch.Tensor]


def decoder_layers(model: Any, tokens: Tokens) -> list[nn.Module]:
    """`model` cut between its blocks; weights and buffers stay its own. `tokens(batch)` are its inputs, int64[samples, positions].

    Raises WorkloadError for a decoder that is not one of `CHAINS`.
    """
    if type(model).__name__ not in CHAINS:
        raise WorkloadError(f"a {type(model).__name__} cannot be cut into layers: possible are {', '.join(CHAINS)}.")
    decoder = model.model
    blocks = [_Block(block, decoder.rotary_emb, _mask_of(decoder.config, index)) for index, block in enumerate(decoder.layers)]
    return [_Embedding(decoder.embed_tokens, tokens), *blocks, _Head(decoder.norm, model.lm_head)]


class _Embedding(nn.Module):  # type: ignore[misc]
    def __init__(self, embedding: nn.Module, tokens: Tokens) -> None:
        super().__init__()
        self.embedding = embedding
        self._tokens = tokens

    def forward(self, batch: Batch) -> torch.Tensor:
        hidden: torch.Tensor = self.embedding(self._tokens(batch))
        return hidden


class _Block(nn.Module):  # type: ignore[misc]
    """One block with what the decoder computes once for all of them: rotary angles and the mask, from the shape alone."""

    def __init__(self, block: nn.Module, rotary: nn.Module, mask: Callable[..., Any]) -> None:
        super().__init__()
        self.block = block
        self.rotary = rotary
        self._mask = mask

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """float[samples, positions, width] -> the same."""
        positions = torch.arange(hidden.shape[1], device=hidden.device).unsqueeze(0)
        changed: torch.Tensor = self.block(
            hidden,
            attention_mask=self._mask(hidden, positions),
            position_embeddings=self.rotary(hidden, position_ids=positions),
            position_ids=positions,
            use_cache=False,
        )
        return changed


class _Head(nn.Module):  # type: ignore[misc]
    def __init__(self, norm: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.norm = norm
        self.head = head

    def forward(self, hidden: torch.Tensor) -> Any:
        return CausalLMOutputWithPast(logits=self.head(self.norm(hidden)))


def _mask_of(config: Any, index: int) -> Callable[[torch.Tensor, torch.Tensor], Any]:
    """(hidden, positions) -> what the decoder gives its block number `index` as a mask; None where attention is plainly causal."""
    kinds = getattr(config, "layer_types", None)
    slides = kinds[index] == "sliding_attention" if kinds else getattr(config, "sliding_window", None) is not None
    make = create_sliding_window_causal_mask if slides else create_causal_mask

    def mask(hidden: torch.Tensor, positions: torch.Tensor) -> Any:
        return make(config=config, inputs_embeds=hidden, attention_mask=None, past_key_values=None, position_ids=positions)

    return mask
