"""Encoders of `text-classifier` and `bert`: BERT from its shape (Devlin et al. 2019), or one that was trained before, from a local folder.

Both are `model.options`: `encoder_of` tells them apart by `pretrained`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoModel, BertConfig, BertForMaskedLM, BertModel

from orchestrator.errors import DataError
from orchestrator.spec import from_dict

from .adapters import Adapters
from .model_folder import FLAG, TOKENIZER_FILE, check_fit, check_folder, load_model, read_config
from .requirements import require

MODEL_TYPES = ("bert", "roberta", "distilbert", "electra")
"""Encoders that can be read from a folder."""


class BertOverMasked(BertForMaskedLM):  # type: ignore[misc]
    """BERT that predicts only the tokens asked for: the matrix over the vocabulary costs more than the rest of a small encoder."""

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
        """Logits float[k, vocabulary] of the k places where `chosen`, bool[n, length], is true, in row-major order."""
        states = self.bert(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        logits: torch.Tensor = self.cls(states[chosen])
        return logits


class Classifier(nn.Module):  # type: ignore[misc]
    """An encoder, the mean of its states over the text's tokens, and a linear layer."""

    def __init__(self, encoder: nn.Module, hidden_size: int, num_classes: int, dropout: float) -> None:
        super().__init__()
        self.encoder = encoder
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(hidden_size, num_classes)
        nn.init.normal_(self.head.weight, std=0.02)
        nn.init.zeros_(self.head.bias)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Logits float[n, classes] of `input_ids` int64[n, length] where `attention_mask`, of the same shape, is 1."""
        states = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        mask = attention_mask.unsqueeze(-1).to(states.dtype)
        mean = (states * mask).sum(1) / mask.sum(1)
        logits: torch.Tensor = self.head(self.dropout(mean))
        return logits


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """BERT: learned positions, LayerNorm after each sublayer, GELU. Its longest text is `data.options.length`."""

    hidden_size: int = 128
    intermediate_size: int = 512
    num_layers: int = 2
    num_heads: int = 2
    dropout: float = 0.1
    """Of states and attention, in training. With more than 0 the result depends on the number of workers."""

    def __post_init__(self) -> None:
        for name in ("hidden_size", "intermediate_size", "num_layers", "num_heads"):
            require(getattr(self, name) >= 1, f"model.options.{name}", getattr(self, name), "at least 1")
        ok = self.hidden_size % self.num_heads == 0
        require(ok, "model.options.num_heads", self.num_heads, f"a divisor of hidden_size={self.hidden_size}")
        require(0 <= self.dropout < 1, "model.options.dropout", self.dropout, "0 up to, but not, 1")

    def tokenizer(self) -> bytes | None:
        """None: the data set trains its own."""
        return None

    def classifier(self, vocab_size: int, length: int, num_classes: int) -> nn.Module:
        encoder = BertModel(self._config(vocab_size, length), add_pooling_layer=False)
        return Classifier(encoder, self.hidden_size, num_classes, self.dropout)

    def masked_lm(self, vocab_size: int, length: int) -> nn.Module:
        model: nn.Module = BertOverMasked(self._config(vocab_size, length))
        return model

    def _config(self, vocab_size: int, length: int) -> BertConfig:
        return BertConfig(
            vocab_size=vocab_size,
            hidden_size=self.hidden_size,
            intermediate_size=self.intermediate_size,
            num_hidden_layers=self.num_layers,
            num_attention_heads=self.num_heads,
            max_position_embeddings=length,
            hidden_dropout_prob=self.dropout,
            attention_probs_dropout_prob=self.dropout,
            attn_implementation="sdpa",
        )


@dataclass(frozen=True, kw_only=True)
class Pretrained(Adapters):
    """An encoder in a local folder (`model_folder`): what `bert` has made, or any of `MODEL_TYPES` with a fast tokenizer."""

    pretrained: str
    """The folder. Every node must see it. Pickled weights and code in the folder are refused: loading them can run anything."""
    dropout: float = 0.1
    """Of states and attention, in training. With more than 0 the result depends on the number of workers."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_folder(self._folder)
        require(0 <= self.dropout < 1, "model.options.dropout", self.dropout, "0 up to, but not, 1")

    @property
    def _folder(self) -> Path:
        return Path(self.pretrained)

    def tokenizer(self) -> bytes | None:
        """Content of the folder's `tokenizer.json`. Raises DataError where there is none: other tokens would mean nothing to the model."""
        path = self._folder / TOKENIZER_FILE
        if not path.is_file():
            raise DataError(f"{FLAG}={self._folder} has no {TOKENIZER_FILE}: the encoder's tokens are not known.")
        return path.read_bytes()

    def classifier(self, vocab_size: int, length: int, num_classes: int) -> nn.Module:
        """The stored encoder, maybe with adapters, under a new linear layer that is always trained."""
        config = self._config(MODEL_TYPES, vocab_size, length)
        encoder = load_model(AutoModel, self._folder, config, new=("pooler",))
        if hasattr(encoder, "pooler"):
            encoder.pooler = None
        return Classifier(self.adapt(encoder), config.hidden_size, num_classes, self.dropout)

    def masked_lm(self, vocab_size: int, length: int) -> nn.Module:
        """The stored model, to be trained further on other texts."""
        return self.adapt(load_model(BertOverMasked, self._folder, self._config(("bert",), vocab_size, length)))

    def _config(self, types: tuple[str, ...], vocab_size: int, length: int) -> Any:
        config = read_config(self._folder)
        require(config.model_type in types, FLAG, f"{self._folder} ({config.model_type})", f"a model of the type {', '.join(types)}")
        check_fit(config, vocab_size)
        longest = config.max_position_embeddings - (config.pad_token_id + 1 if config.model_type == "roberta" else 0)
        require(length <= longest, "data.options.length", length, f"at most {longest}, as config.json of {FLAG} says")
        for name in ("hidden_dropout_prob", "attention_probs_dropout_prob", "dropout", "attention_dropout"):
            if hasattr(config, name):
                setattr(config, name, self.dropout)
        return config


Encoder = Architecture | Pretrained


def encoder_of(options: Mapping[str, Any]) -> Encoder:
    """`model.options` as the encoder that they name. Raises ConfigError for a shape beside `pretrained`: the folder says it."""
    chosen = Pretrained if options.get("pretrained") else Architecture
    encoder: Encoder = from_dict(chosen, options, "model.options.")
    return encoder
