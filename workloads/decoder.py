"""Decoders of `gpt`: a Llama-like one from its shape, dense or with mixtures of experts, or a trained one from a local folder.

All are `model.options`: `decoder_of` tells them apart by `pretrained` and `num_experts`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    Qwen2MoeConfig,
    Qwen2MoeForCausalLM,
)

from orchestrator.errors import DataError, UserError
from orchestrator.spec import from_dict
from orchestrator.workload import Initialise

from .adapters import Adapters
from .known import CHAINS
from .model_folder import (
    FLAG,
    TOKENIZER_FILE,
    StoredTensors,
    check_fit,
    check_folder,
    load_model,
    on_meta,
    outline,
    read_config,
    read_json,
)
from .requirements import require
from .rope import check_scaling, rescale, rope_parameters

_INTO_RESIDUAL_STREAM = ("self_attn.o_proj.weight", "mlp.down_proj.weight", "experts.down_proj", "shared_expert.down_proj.weight")


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
    """linear, yarn or llama3 (`rope`)."""
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
        check_scaling(self.rope_scaling, self.rope_scaling_type)

    def tokenizer(self) -> tuple[bytes, int] | None:
        """None: the data set trains its own."""
        return None

    def build(self, vocab_size: int, block_size: int) -> nn.Module:
        """`vocab_size` tokens, inputs of up to `block_size`."""
        original = max(1, round(block_size / self.rope_scaling))
        model = self._model(
            vocab_size=vocab_size,
            hidden_size=self.hidden_size,
            intermediate_size=self.intermediate_size,
            num_hidden_layers=self.num_layers,
            num_attention_heads=self.num_heads,
            num_key_value_heads=self.num_key_value_heads or self.num_heads,
            max_position_embeddings=block_size,
            rope_parameters=rope_parameters(self.rope_theta, self.rope_scaling, self.rope_scaling_type, original),
            tie_word_embeddings=self.tie_embeddings,
            use_cache=False,
            attn_implementation="sdpa",
        )
        if self.depth_scaled_init:
            _scale_residual_projections(model, 1 / math.sqrt(2 * self.num_layers))
        return model

    def initialise(self, model: Any, name: str, module: nn.Module) -> None:
        """What `build` does, for the tensors of one module of its model (`orchestrator.workload.OffersInitialisation`)."""
        model._init_weights(module)
        if self.depth_scaled_init:
            _scale_residual_projections(module, 1 / math.sqrt(2 * self.num_layers), f"{name}.", recurse=False)

    def _model(self, **shape: Any) -> nn.Module:
        model: nn.Module = LlamaForCausalLM(LlamaConfig(**shape))
        return model


@dataclass(frozen=True, kw_only=True)
class Mixture(Architecture):
    """The same with a mixture of experts for each MLP (Mixtral, Jiang et al. 2024): a token passes through the experts that its router
    rates highest, weighted by a softmax over their ratings. No token is dropped, so an output depends on no other sample of the batch.
    """

    num_experts: int
    """In each layer, each of width `intermediate_size`."""
    experts_per_token: int = 2
    shared_intermediate_size: int = 0
    """Width of one more expert that every token passes through, weighted by a sigmoid of its own (Qwen1.5-MoE); 0: none."""
    dense_layers: int = 0
    """So many layers, the first ones, have an MLP for all tokens in place of experts (DeepSeekMoE, Dai et al. 2024)."""
    dense_intermediate_size: int = 0
    """Width of their MLP; 0: as wide as what a token passes through in the other layers."""
    balance_weight: float = 0.01
    """Of the layers' balance losses (`mixture.balance_loss`) in the training loss; 0: none. Switch takes 0.01."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.num_experts >= 2, "model.options.num_experts", self.num_experts, "at least 2; a dense decoder has no such option")
        for name in ("hidden_size", "intermediate_size"):
            ok = getattr(self, name) % 8 == 0
            require(ok, f"model.options.{name}", getattr(self, name), "a multiple of 8 with experts: torch multiplies rows of 16 bytes")
        require(self.shared_intermediate_size >= 0, "model.options.shared_intermediate_size", self.shared_intermediate_size, "0 or more")
        ok = 1 <= self.experts_per_token <= self.num_experts
        require(ok, "model.options.experts_per_token", self.experts_per_token, f"1 to num_experts={self.num_experts}")
        ok = self.dense_layers == 0 or (0 < self.dense_layers < self.num_layers and self.shared_intermediate_size > 0)
        allowed = f"0, or 1 to num_layers - 1 = {self.num_layers - 1} with shared_intermediate_size: Mixtral has experts in each layer"
        require(ok, "model.options.dense_layers", self.dense_layers, allowed)
        ok = self.dense_intermediate_size == 0 or (self.dense_intermediate_size > 0 and self.dense_layers > 0)
        require(ok, "model.options.dense_intermediate_size", self.dense_intermediate_size, "0, or more with dense_layers")
        require(0 <= self.balance_weight < math.inf, "model.options.balance_weight", self.balance_weight, "0 or more")

    def _model(self, **shape: Any) -> nn.Module:
        shape["num_experts_per_tok"] = self.experts_per_token
        model: nn.Module
        if self.shared_intermediate_size:
            shape |= {"moe_intermediate_size": self.intermediate_size, "shared_expert_intermediate_size": self.shared_intermediate_size}
            met = self.experts_per_token * self.intermediate_size + self.shared_intermediate_size
            shape |= {"mlp_only_layers": list(range(self.dense_layers)), "intermediate_size": self.dense_intermediate_size or met}
            model = Qwen2MoeForCausalLM(Qwen2MoeConfig(**shape, num_experts=self.num_experts, norm_topk_prob=True, qkv_bias=False))
        else:
            model = MixtralForCausalLM(MixtralConfig(**shape, num_local_experts=self.num_experts))
        return model


@dataclass(frozen=True, kw_only=True)
class Pretrained(Adapters):
    """A decoder in a local folder (`model_folder`), trained whole or by adapters."""

    pretrained: str
    """The folder. Every node must see it. Pickled weights and code in the folder are refused: loading them can run anything."""
    rope_scaling: float = 1.0
    """Factor by which the context becomes longer than the one that the model was first trained with; 1: as the folder says."""
    rope_scaling_type: str = "yarn"
    """linear, yarn or llama3 (`rope`); takes the place of a scaling that the folder has."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_scaling(self.rope_scaling, self.rope_scaling_type)
        check_folder(self._folder)

    @property
    def _folder(self) -> Path:
        return Path(self.pretrained)

    def tokenizer(self) -> tuple[bytes, int] | None:
        """Content of the folder's `tokenizer.json` and the id of the token that ends a text; None where there is no such file."""
        path = self._folder / TOKENIZER_FILE
        if not path.is_file():
            return None
        end = read_json(self._folder / "config.json").get("eos_token_id")
        end = end[0] if isinstance(end, list) and end else end
        if not isinstance(end, int):
            raise DataError(f"{self._folder / 'config.json'} has no eos_token_id, which must stand between texts.")
        return path.read_bytes(), end

    def build(self, vocab_size: int, block_size: int) -> nn.Module:
        """The stored weights in fp32. Raises DataError where the folder's model cannot take such tokens, or lacks weights."""
        config = read_config(self._folder)
        config.use_cache = False
        rescale(config, self.rope_scaling, self.rope_scaling_type)
        check_fit(config, vocab_size)
        _check_length(config, block_size)
        if on_meta():
            return outline(AutoModelForCausalLM, config)
        return self.adapt(load_model(AutoModelForCausalLM, self._folder, config))

    @property
    def initialise(self) -> Initialise | None:
        """Reads a module's tensors from the folder. None where adapters come between them, and where the folder does not hold exactly the
        tensors of one of `CHAINS` under their own names: those are loaded whole, by transformers, which also knows what is wrong."""
        if self.lora_rank:
            return None
        with torch.device("meta"):
            model = outline(AutoModelForCausalLM, read_config(self._folder))
        stored = StoredTensors(self._folder)
        return stored.initialise if type(model).__name__ in CHAINS and stored.are_those_of(model) else None

    def export_adapters(self, model: nn.Module, folder: Path) -> None:
        """Write them as peft reads them. Raises UserError where they would not say the same beside the stored model."""
        if self.rope_scaling != 1:
            why = f"the stored model does not know of model.options.rope_scaling={self.rope_scaling}"
            raise UserError(f"the adapters alone would say something else: {why}. Export the model without --adapters.")
        self.save_adapters(model, self.pretrained, folder)


Decoder = Architecture | Pretrained


def decoder_of(options: Mapping[str, Any]) -> Decoder:
    """`model.options` as the decoder that they name. Raises ConfigError for a shape beside `pretrained`: the folder says it."""
    chosen = Pretrained if options.get("pretrained") else Mixture if "num_experts" in options else Architecture
    decoder: Decoder = from_dict(chosen, options, "model.options.")
    return decoder


def _scale_residual_projections(module: nn.Module, factor: float, prefix: str = "", recurse: bool = True) -> None:
    for name, parameter in module.named_parameters(recurse=recurse):
        if f"{prefix}{name}".endswith(_INTO_RESIDUAL_STREAM):
            with torch.no_grad():
                parameter.mul_(factor)


def _check_length(config: Any, block_size: int) -> None:
    longest = getattr(config, "max_position_embeddings", None)
    ok = longest is None or block_size <= longest
    allowed = f"at most {longest}, as config.json of {FLAG} says; model.options.rope_scaling is the factor for more"
    require(ok, "data.options.block_size", block_size, allowed)
