"""Classifiers of images of the published shapes, built by transformers from their numbers: `model.options` with a `family`.

    resnet     He et al. 2016, version 1.5; group norm (Wu and He 2018) in place of batch norm unless asked otherwise
    convnext   Liu et al. 2022
    vit        Dosovitskiy et al. 2021

All of them take images of three channels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers import (
    ConvNextConfig,
    ConvNextForImageClassification,
    ResNetConfig,
    ResNetForImageClassification,
    ViTConfig,
    ViTForImageClassification,
)

from orchestrator.spec import from_dict

from .requirements import require

NUM_CHANNELS = 3
LAYERS = ("basic", "bottleneck")


@dataclass(frozen=True, kw_only=True)
class _Image:
    family: str
    image_size: int = 224
    """Images are scaled to this height and width."""

    def _check(self, multiple: int) -> None:
        ok = self.image_size >= multiple and self.image_size % multiple == 0
        require(ok, "model.options.image_size", self.image_size, f"a multiple of {multiple}")


@dataclass(frozen=True, kw_only=True)
class Residual(_Image):
    hidden_sizes: tuple[int, ...] = (64, 128, 256, 512)
    depths: tuple[int, ...] = (2, 2, 2, 2)
    layer_type: str = "basic"
    """basic: two convolutions of 3 x 3; bottleneck: 1 x 1, 3 x 3, 1 x 1."""
    norm_groups: int = 32
    """0: batch norm, whose result depends on the number of workers."""

    def __post_init__(self) -> None:
        self._check(32)
        require(self.layer_type in LAYERS, "model.options.layer_type", self.layer_type, " or ".join(LAYERS))
        ok = len(self.hidden_sizes) == len(self.depths) and min(self.depths, default=0) >= 1
        require(ok, "model.options.depths", self.depths, f"as many numbers of blocks as model.options.hidden_sizes={self.hidden_sizes}")
        widths = (64, *self.hidden_sizes, *(size // 4 for size in self.hidden_sizes if self.layer_type == "bottleneck"))
        ok = self.norm_groups == 0 or (self.norm_groups > 0 and not any(width % self.norm_groups for width in widths))
        require(ok, "model.options.norm_groups", self.norm_groups, f"0 (batch norm) or a divisor of every width in {widths}")

    def build(self, num_classes: int) -> nn.Module:
        config = ResNetConfig(
            num_channels=NUM_CHANNELS,
            embedding_size=64,
            hidden_sizes=list(self.hidden_sizes),
            depths=list(self.depths),
            layer_type=self.layer_type,
            num_labels=num_classes,
        )
        model: nn.Module = ResNetForImageClassification(config)
        return use_group_norm(model, self.norm_groups) if self.norm_groups else model


@dataclass(frozen=True, kw_only=True)
class ConvNext(_Image):
    hidden_sizes: tuple[int, ...] = (96, 192, 384, 768)
    depths: tuple[int, ...] = (3, 3, 9, 3)
    drop_path_rate: float = 0.0
    """Share of residual branches that are left out in training, up to this for the last block (Huang et al. 2016)."""

    def __post_init__(self) -> None:
        self._check(32)
        ok = len(self.hidden_sizes) == len(self.depths) == 4 and min(self.depths) >= 1
        require(ok, "model.options.depths", self.depths, f"4 numbers of blocks, for 4 widths in hidden_sizes={self.hidden_sizes}")
        require(0 <= self.drop_path_rate < 1, "model.options.drop_path_rate", self.drop_path_rate, "0 up to, but not, 1")

    def build(self, num_classes: int) -> nn.Module:
        model: nn.Module = ConvNextForImageClassification(
            ConvNextConfig(
                num_channels=NUM_CHANNELS,
                hidden_sizes=list(self.hidden_sizes),
                depths=list(self.depths),
                drop_path_rate=self.drop_path_rate,
                image_size=self.image_size,
                num_labels=num_classes,
            )
        )
        return model


@dataclass(frozen=True, kw_only=True)
class VisionTransformer(_Image):
    hidden_size: int = 192
    intermediate_size: int = 768
    num_layers: int = 12
    num_heads: int = 3
    patch_size: int = 16
    dropout: float = 0.0
    """With more than 0 the result depends on the number of workers."""

    def __post_init__(self) -> None:
        for name in ("hidden_size", "intermediate_size", "num_layers", "num_heads", "patch_size"):
            require(getattr(self, name) >= 1, f"model.options.{name}", getattr(self, name), "at least 1")
        self._check(self.patch_size)
        ok = self.hidden_size % self.num_heads == 0
        require(ok, "model.options.num_heads", self.num_heads, f"a divisor of hidden_size={self.hidden_size}")
        require(0 <= self.dropout < 1, "model.options.dropout", self.dropout, "0 up to, but not, 1")

    def build(self, num_classes: int) -> nn.Module:
        model: nn.Module = ViTForImageClassification(
            ViTConfig(
                num_channels=NUM_CHANNELS,
                hidden_size=self.hidden_size,
                intermediate_size=self.intermediate_size,
                num_hidden_layers=self.num_layers,
                num_attention_heads=self.num_heads,
                patch_size=self.patch_size,
                image_size=self.image_size,
                hidden_dropout_prob=self.dropout,
                attention_probs_dropout_prob=self.dropout,
                num_labels=num_classes,
                attn_implementation="sdpa",
            )
        )
        return model


Published = Residual | ConvNext | VisionTransformer
FAMILIES: dict[str, type[Published]] = {"resnet": Residual, "convnext": ConvNext, "vit": VisionTransformer}


def published_of(options: Mapping[str, Any]) -> Published:
    """`model.options` as the model of their `family`."""
    family = options["family"]
    require(family in FAMILIES, "model.options.family", family, ", ".join(FAMILIES))
    chosen: Published = from_dict(FAMILIES[family], options, "model.options.")
    return chosen


def use_group_norm(model: nn.Module, groups: int) -> nn.Module:
    """Put a group norm where each batch norm stands: no buffers that differ by rank, the same result at any number of workers."""
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.BatchNorm2d):
            model.set_submodule(name, nn.GroupNorm(groups, module.num_features))
    return model
