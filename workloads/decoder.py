"""Decoders of `gpt`: a Llama-like one from its shape, or one that was trained before, from a local folder.

Both are `model.options`: `decoder_of` tells them apart by `pretrained`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from orchestrator.errors import DataError
from orchestrator.spec import from_dict

from .requirements import require

_FLAG = "model.options.pretrained"
_PICKLES = (".bin", ".pt", ".pth", ".ckpt")
_ROPE_TYPES = ("linear", "yarn")


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """A Llama decoder (rotary positions, RMSNorm, SwiGLU) without dropout. Its longest context is `data.options.block_size`."""

    hidden_size: int = 192
    intermediate_size: int = 528
    num_layers: int = 4
    num_heads: int = 3
    num_key_value_heads: int = 0
    """Heads of keys and values, each shared by as many query heads (grouped-query attention); 0: one for each query head."""
    rope_theta: float = 10_000.0
    """Base of the rotary wavelengths."""
    rope_scaling: float = 1.0
    """Factor by which the context is longer than the one that the wavelengths were made for; 1: not scaled."""
    rope_scaling_type: str = "linear"
    """linear: positions are divided by the factor (Chen et al. 2023); yarn: only long wavelengths are (Peng et al. 2023)."""
    tie_embeddings: bool = True
    """One matrix for reading and for predicting tokens."""
    depth_scaled_init: bool = True
    """Projections that add to the residual stream begin smaller by sqrt(2 num_layers) (GPT-2, Radford et al. 2019, section 2.3)."""

    def __post_init__(self) -> None:
        for name in ("hidden_size", "intermediate_size", "num_layers", "num_heads"):
            require(getattr(self, name) >= 1, f"model.options.{name}", getattr(self, name), "at least 1")
        ok = self.hidden_size % (2 * self.num_heads) == 0
        require(ok, "model.options.num_heads", self.num_heads, f"a number of heads of even width in hidden_size={self.hidden_size}")
        shared = self.num_key_value_heads
        ok = shared == 0 or (shared > 0 and self.num_heads % shared == 0)
        require(ok, "model.options.num_key_value_heads", shared, f"0 or a divisor of num_heads={self.num_heads}")
        require(0 < self.rope_theta < math.inf, "model.options.rope_theta", self.rope_theta, "more than 0")
        require(1 <= self.rope_scaling < math.inf, "model.options.rope_scaling", self.rope_scaling, "1 (not scaled) or more")
        ok = self.rope_scaling_type in _ROPE_TYPES
        require(ok, "model.options.rope_scaling_type", self.rope_scaling_type, " or ".join(_ROPE_TYPES))

    def tokenizer(self) -> tuple[bytes, int] | None:
        """None: the data set trains its own."""
        return None

    def build(self, vocab_size: int, block_size: int) -> nn.Module:
        """`vocab_size` tokens, inputs of up to `block_size`."""
        config = LlamaConfig(
            vocab_size=vocab_size,
            hidden_size=self.hidden_size,
            intermediate_size=self.intermediate_size,
            num_hidden_layers=self.num_layers,
            num_attention_heads=self.num_heads,
            num_key_value_heads=self.num_key_value_heads or self.num_heads,
            max_position_embeddings=block_size,
            rope_parameters=_rope(self.rope_theta, self.rope_scaling, self.rope_scaling_type, block_size),
            tie_word_embeddings=self.tie_embeddings,
            use_cache=False,
            attn_implementation="sdpa",
        )
        model: nn.Module = LlamaForCausalLM(config)
        if self.depth_scaled_init:
            _scale_residual_projections(model, 1 / math.sqrt(2 * self.num_layers))
        return model


@dataclass(frozen=True, kw_only=True)
class Pretrained:
    """A decoder in a local folder as transformers' `save_pretrained` writes it: `config.json`, safetensors, maybe `tokenizer.json`."""

    pretrained: str
    """The folder. Every node must see it. Pickled weights and code in the folder are refused: loading them can run anything."""

    def __post_init__(self) -> None:
        if not self._folder.is_dir():
            raise DataError(f"{_FLAG}={self.pretrained} is not a folder.")
        _check_weights(self._folder)

    @property
    def _folder(self) -> Path:
        return Path(self.pretrained)

    def tokenizer(self) -> tuple[bytes, int] | None:
        """Content of the folder's `tokenizer.json` and the id of the token that ends a text; None where there is no such file."""
        path = self._folder / "tokenizer.json"
        if not path.is_file():
            return None
        end = _read_json(self._folder / "config.json").get("eos_token_id")
        end = end[0] if isinstance(end, list) and end else end
        if not isinstance(end, int):
            raise DataError(f"{self._folder / 'config.json'} has no eos_token_id, which must stand between texts.")
        return path.read_bytes(), end

    def build(self, vocab_size: int, block_size: int) -> nn.Module:
        """The stored weights in fp32. Raises DataError where the folder's model cannot take such tokens, or lacks weights."""
        config = _config(self._folder)
        _check_fit(config, vocab_size, block_size)
        model, found = AutoModelForCausalLM.from_pretrained(
            self._folder, config=config, dtype=torch.float32, use_safetensors=True, trust_remote_code=False, local_files_only=True,
            ignore_mismatched_sizes=True, output_loading_info=True,
        )  # fmt: skip
        _check_loaded(self._folder, missing=sorted(found["missing_keys"]), misshaped=sorted(key[0] for key in found["mismatched_keys"]))
        module: nn.Module = model
        return module


Decoder = Architecture | Pretrained


def decoder_of(options: Mapping[str, Any]) -> Decoder:
    """`model.options` as the decoder that they name. Raises ConfigError for a shape beside `pretrained`: the folder says it."""
    chosen = Pretrained if options.get("pretrained") else Architecture
    decoder: Decoder = from_dict(chosen, options, "model.options.")
    return decoder


def _rope(theta: float, factor: float, kind: str, block_size: int) -> dict[str, Any]:
    if factor == 1:
        return {"rope_type": "default", "rope_theta": theta}
    original = {"original_max_position_embeddings": max(1, round(block_size / factor))} if kind == "yarn" else {}
    return {"rope_type": kind, "factor": factor, "rope_theta": theta, **original}


def _scale_residual_projections(model: nn.Module, factor: float) -> None:
    for name, parameter in model.named_parameters():
        if name.endswith(("self_attn.o_proj.weight", "mlp.down_proj.weight")):
            with torch.no_grad():
                parameter.mul_(factor)


def _check_weights(folder: Path) -> None:
    """Raises DataError that names the first file that is missing or refused."""
    if not (folder / "config.json").is_file():
        raise DataError(f"{_FLAG}={folder} has no config.json.")
    if (folder / "model.safetensors").is_file():
        return
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        pickles = sorted(path.name for path in folder.iterdir() if path.suffix in _PICKLES)
        why = f" {pickles[0]} is refused: it is a pickle, and loading a pickle can run any code. Save it as safetensors." if pickles else ""
        raise DataError(f"{_FLAG}={folder} has no model.safetensors (or model.safetensors.index.json).{why}")
    for name in sorted(set(_read_json(index).get("weight_map", {}).values())):
        if not (folder / name).is_file():
            raise DataError(f"{_FLAG}={folder} has no {name}, which model.safetensors.index.json names.")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text())
    except ValueError as error:
        raise DataError(f"{path} is not JSON: {error}.") from error
    if not isinstance(found, dict):
        raise DataError(f"{path} is not a JSON object.")
    return found


def _config(folder: Path) -> Any:
    if "auto_map" in _read_json(folder / "config.json"):
        raise DataError(f"{folder / 'config.json'} names code of its own (auto_map), which is not run: allowed are transformers' models.")
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except (ValueError, KeyError, OSError) as error:
        raise DataError(f"{folder / 'config.json'} is no model that transformers knows: {str(error).splitlines()[0]}") from error
    config.use_cache = False
    return config


def _check_loaded(folder: Path, missing: list[str], misshaped: list[str]) -> None:
    for names, what in ((missing, "lack"), (misshaped, "have another shape for")):
        if names:
            raise DataError(f"{_FLAG}={folder}: the weights {what} {', '.join(names[:3])} ({len(names)} in all) of config.json's model.")


def _check_fit(config: Any, vocab_size: int, block_size: int) -> None:
    if vocab_size > config.vocab_size:
        raise DataError(
            f"the tokenizer has {vocab_size} tokens, the model of {_FLAG} only {config.vocab_size}: "
            "give the folder its tokenizer.json, or a smaller data.options.vocab_size."
        )
    longest = getattr(config, "max_position_embeddings", None)
    ok = longest is None or block_size <= longest
    require(ok, "data.options.block_size", block_size, f"at most {longest}, as config.json of {_FLAG} says")
