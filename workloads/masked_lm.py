"""`bert`: an encoder learns to fill in tokens that are masked (Devlin et al. 2019, section 3.1), from texts whose classes it is not told.

Records are `tokens: uint16[length]` (uint32 where a given tokenizer has more than 65,536 tokens), padded at the end. In each text the
same share of tokens is chosen, at least one: of them 80 % are masked, 10 % become another token, 10 % stay. In training the choice is
drawn anew each time; in evaluation it is a function of the text. The split is that of `text-classifier` with the same `data.options`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from orchestrator.spec import JobSpec, from_dict
from orchestrator.workload import DatasetSink, DatasetView

from .adapters import merge
from .encoder import Encoder, Pretrained, encoder_of
from .model_folder import save_folder
from .requirements import require
from .tokens import Recipe, Special, encode, inputs_of, kept_tokenizer, special_tokens

_AT_ONCE = 8192  # texts that are tokenized together


@dataclass(frozen=True, kw_only=True)
class Masking:
    """`workload.options`."""

    mask_share: float = 0.15
    """Of each text's tokens, the share to be predicted."""
    text: str = "for number in [MASK](10):"
    """Shown at the end with what the model puts in place of each [MASK]; must fit into `data.options.length`."""

    def __post_init__(self) -> None:
        require(0 < self.mask_share < 1, "workload.options.mask_share", self.mask_share, "between 0 and 1")
        require("[MASK]" in self.text, "workload.options.text", self.text, "a text with [MASK] in it")


class MaskedLM:
    """The workload. `orchestrator.workload.Workload` tells what each method promises."""

    def __init__(self, spec: JobSpec) -> None:
        self.recipe: Recipe = from_dict(Recipe, spec.data.options, "data.options.")
        self.encoder: Encoder = encoder_of(spec.model.options)
        if isinstance(self.encoder, Pretrained):
            self.encoder.check_layout(spec)
        self.masking: Masking = from_dict(Masking, spec.workload.options, "workload.options.")
        self._special = Special(0, 0, 0, 0)
        self._vocab_size = 0

    @property
    def tokens_per_sample(self) -> int:
        return self.recipe.length

    def source_fingerprint(self) -> str:
        return self.recipe.fingerprint("no classes", self.encoder.tokenizer(), self.recipe.read())

    def prepare(self, sink: DatasetSink) -> None:
        texts = self.recipe.read()
        splits = {name: [text for text in texts if self.recipe.split_of(text) == name] for name in ("train", "validation")}
        tokenizer = self.recipe.tokenizer(self.encoder.tokenizer(), splits["train"], sink)
        for split, chosen in splits.items():
            sink.progress(f"tokenizing {len(chosen):,} {split} texts")
            for first in range(0, len(chosen), _AT_ONCE):
                tokens = encode(tokenizer, [text.text for text in chosen[first : first + _AT_ONCE]], self.recipe.length)
                sink.write(split, tokens.view([("tokens", tokens.dtype, tokens.shape[1:])])[:, 0])

    def build_model(self, dataset: DatasetView) -> nn.Module:
        tokenizer = kept_tokenizer(dataset)
        self._special, self._vocab_size = special_tokens(tokenizer), tokenizer.get_vocab_size()
        return self.encoder.masked_lm(self._vocab_size, self.recipe.length)

    def loss(self, model: nn.Module, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        tokens, mask = inputs_of(batch["tokens"], self._special.pad)
        draws = torch.rand((3, *tokens.shape), device=tokens.device)
        chosen, logits = self._predict(model, tokens, mask, draws)
        losses = functional.cross_entropy(logits, tokens[chosen], reduction="none")
        return (losses / chosen.sum(1).repeat_interleave(chosen.sum(1))).sum() / len(tokens)

    def evaluate(self, model: nn.Module, batch: Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
        tokens, mask = inputs_of(batch["tokens"], self._special.pad)
        chosen, logits = self._predict(model, tokens, mask, _draws_from(tokens * mask))
        targets = tokens[chosen]
        return {
            "loss_sum": functional.cross_entropy(logits, targets, reduction="sum").double(),
            "right": (logits.argmax(-1) == targets).sum(),
            "tokens": torch.tensor(len(targets), device=targets.device),
        }

    def metrics(self, sums: Mapping[str, np.ndarray[Any, Any]]) -> Mapping[str, float]:
        """`loss` and `accuracy` are over the chosen tokens."""
        loss = float(sums["loss_sum"]) / float(sums["tokens"])
        return {"loss": loss, "perplexity": math.exp(min(loss, 700.0)), "accuracy": float(sums["right"]) / float(sums["tokens"])}

    def sample(self, model: nn.Module, dataset: DatasetView) -> str:
        """The text with the likeliest token in place of each [MASK]."""
        tokenizer, special = kept_tokenizer(dataset), special_tokens(kept_tokenizer(dataset))
        parts = [tokenizer.encode(part, add_special_tokens=False).ids for part in self.masking.text.split("[MASK]")]
        ids = [special.first, *parts[0], *(number for part in parts[1:] for number in (special.mask, *part)), special.last]
        tokens = torch.tensor([ids[: self.recipe.length]], device=next(model.parameters()).device)
        masked = tokens == special.mask
        if masked.any():
            tokens[masked] = model(input_ids=tokens, attention_mask=torch.ones_like(tokens), chosen=masked).argmax(-1)
        return str(tokenizer.decode(tokens[0].tolist()))

    def export(self, model: nn.Module, dataset: DatasetView, folder: Path) -> None:
        save_folder(merge(model), folder, kept_tokenizer(dataset))

    def _predict(
        self, model: nn.Module, tokens: torch.Tensor, mask: torch.Tensor, draws: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(places to be predicted bool[n, length], logits float32[k, vocabulary] of them). `draws`: [3, n, length] between 0 and 1."""
        special = torch.tensor(list(self._special), device=tokens.device)
        chosen = choose(draws[0], ~torch.isin(tokens, special), self.masking.mask_share)
        other = (draws[2] * self._vocab_size).long().clamp(max=self._vocab_size - 1)
        hidden = torch.where(draws[1] < 0.8, self._special.mask, torch.where(draws[1] < 0.9, other, tokens))
        logits: torch.Tensor = model(input_ids=torch.where(chosen, hidden, tokens), attention_mask=mask, chosen=chosen)
        return chosen, logits.float()


def choose(draws: torch.Tensor, allowed: torch.Tensor, share: float) -> torch.Tensor:
    """bool[n, length]: in each row the `share` (rounded, at least one) of the `allowed` places with the smallest draws."""
    counts = (allowed.sum(1) * share).round().clamp(min=1)
    ranks = draws.masked_fill(~allowed, 2.0).argsort(1).argsort(1)
    return (ranks < counts.unsqueeze(1)) & allowed


def _draws_from(tokens: torch.Tensor) -> torch.Tensor:
    """[3, n, length] between 0 and 1 from each text alone (0: padding): the same in any batch, on any number of ranks."""
    places = torch.arange(1, tokens.shape[1] + 1, device=tokens.device)
    text = (tokens * places * 40_503).sum(1, keepdim=True)
    kinds = torch.arange(1, 4, device=tokens.device).view(3, 1, 1)
    return _mixed(_mixed(_mixed(text) + places) + 3_628_273 * kinds).double() / 2**31


def _mixed(numbers: torch.Tensor) -> torch.Tensor:
    """Whole numbers to whole numbers of 31 bits that look as if drawn: xor-shifts and multiplications, as in hash functions."""
    numbers = numbers % 2**31
    for _ in range(2):
        numbers = ((numbers >> 16) ^ numbers) * 0x45D9F3B % 2**31
    return (numbers >> 16) ^ numbers
