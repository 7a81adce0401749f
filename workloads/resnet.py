"""`resnet`: a convolutional network with residual connections, or another classifier of images, learns to read handwritten digits.

The images are scikit-learn's digits (1,797 of 8 x 8 pixels, from the UCI collection). Records are
`image: float32[1, 8, 8]` (standardised with the training images' mean and deviation) and `label: int64`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional
from transformers import ResNetConfig, ResNetForImageClassification

from orchestrator.spec import JobSpec, from_dict, to_dict
from orchestrator.workload import DatasetSink, DatasetView

from .image_models import NUM_CHANNELS, Published, published_of, use_group_norm
from .requirements import require
from .scores import figures, report_files, sums_of

NUM_CLASSES = 10
STATISTICS_FILE = "statistics.json"
_FORMAT = 1  # of the recipe: a change here makes every data set anew


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """`data.options`."""

    validation_share: float = 0.2
    """Share of each class's images that is held out."""
    split_seed: int = 0

    def __post_init__(self) -> None:
        ok = 0.01 <= self.validation_share <= 0.9
        require(ok, "data.options.validation_share", self.validation_share, "0.01 to 0.9")
        require(self.split_seed >= 0, "data.options.split_seed", self.split_seed, "0 or more")


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """`model.options`: transformers' ResNet with basic blocks, without the stem's downsampling: the images are small."""

    embedding_size: int = 16
    hidden_sizes: tuple[int, ...] = (16, 32, 64)
    """Channels of each stage; every stage after the first halves height and width."""
    depths: tuple[int, ...] = (2, 2, 2)
    """Residual blocks of each stage."""
    norm_groups: int = 8
    """Group norm in place of batch norm: no buffers that differ by rank, the same result at any number of workers."""

    def __post_init__(self) -> None:
        ok = len(self.hidden_sizes) == len(self.depths) and 1 <= len(self.depths) <= 4
        require(ok, "model.options.depths", self.depths, f"1 to 4 stages, as many as model.options.hidden_sizes={self.hidden_sizes}")
        require(min(self.depths) >= 1, "model.options.depths", self.depths, "at least one block in each stage")
        widths = (self.embedding_size, *self.hidden_sizes)
        ok = self.norm_groups >= 1 and all(width >= 1 and width % self.norm_groups == 0 for width in widths)
        require(ok, "model.options.norm_groups", self.norm_groups, f"a divisor of every width in {widths}")

    def build(self, num_classes: int) -> nn.Module:
        config = ResNetConfig(
            num_channels=1,
            embedding_size=self.embedding_size,
            hidden_sizes=list(self.hidden_sizes),
            depths=list(self.depths),
            layer_type="basic",
            num_labels=num_classes,
        )
        model: nn.Module = ResNetForImageClassification(config)
        stem = model.resnet.embedder
        stem.embedder.convolution = nn.Conv2d(1, self.embedding_size, 3, padding=1, bias=False)
        nn.init.kaiming_normal_(stem.embedder.convolution.weight, mode="fan_out", nonlinearity="relu")
        stem.pooler = nn.Identity()
        return use_group_norm(model, self.norm_groups)


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """`workload.options`."""

    label_smoothing: float = 0.1
    """Share of each target that is spread over all classes; training only."""

    def __post_init__(self) -> None:
        ok = 0 <= self.label_smoothing < 1
        require(ok, "workload.options.label_smoothing", self.label_smoothing, "0 up to, but not, 1")


class ResNet:
    """The workload. `orchestrator.workload.Workload` tells what each method promises."""

    tokens_per_sample = 0

    def __init__(self, spec: JobSpec) -> None:
        self.recipe: Recipe = from_dict(Recipe, spec.data.options, "data.options.")
        self.architecture: Architecture | Published = _architecture_of(spec.model.options)
        self.augmentation: Augmentation = from_dict(Augmentation, spec.workload.options, "workload.options.")

    def source_fingerprint(self) -> str:
        images, labels = _digits()
        digest = hashlib.blake2b(digest_size=20)
        digest.update(json.dumps([_FORMAT, to_dict(self.recipe)], sort_keys=True).encode())
        digest.update(images.tobytes() + labels.tobytes())
        return digest.hexdigest()

    def prepare(self, sink: DatasetSink) -> None:
        images, labels = _digits()
        sink.progress(f"splitting {len(labels):,} images of digits")
        held_out = _held_out(labels, self.recipe)
        mean, deviation = float(images[~held_out].mean()), float(images[~held_out].std())
        sink.add_file(STATISTICS_FILE, json.dumps({"mean": mean, "deviation": deviation}).encode())
        records = np.empty(len(labels), dtype=[("image", "<f4", (1, 8, 8)), ("label", "<i8")])
        records["image"][:, 0] = (images - mean) / deviation
        records["label"] = labels
        sink.write("train", records[~held_out])
        sink.write("validation", records[held_out])

    def build_model(self, dataset: DatasetView) -> nn.Module:
        return self.architecture.build(NUM_CLASSES)

    def loss(self, model: nn.Module, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        logits = self._logits(model, batch)
        return functional.cross_entropy(logits, batch["label"], label_smoothing=self.augmentation.label_smoothing)

    def evaluate(self, model: nn.Module, batch: Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
        return sums_of(self._logits(model, batch), batch["label"])

    def metrics(self, sums: Mapping[str, np.ndarray[Any, Any]]) -> Mapping[str, float]:
        return figures(sums)

    def report(self, sums: Mapping[str, np.ndarray[Any, Any]], dataset: DatasetView) -> Mapping[str, bytes]:
        return report_files(sums, [str(digit) for digit in range(NUM_CLASSES)], "images")

    def _logits(self, model: nn.Module, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        images = batch["image"].to(next(model.parameters()).dtype)  # bf16 where the engine computes in bf16
        if not isinstance(self.architecture, Architecture):
            images = _as_published(images, self.architecture.image_size)
        logits: torch.Tensor = model(pixel_values=images).logits
        return logits.float()


def _architecture_of(options: Mapping[str, Any]) -> Architecture | Published:
    """The shape of this module, or with `family` a published one."""
    if "family" in options:
        return published_of(options)
    small: Architecture = from_dict(Architecture, options, "model.options.")
    return small


def _as_published(images: torch.Tensor, size: int) -> torch.Tensor:
    """float[n, 1, 8, 8] -> [n, 3, size, size]."""
    scaled = functional.interpolate(images, size=(size, size), mode="bilinear", antialias=True)
    return scaled.expand(-1, NUM_CHANNELS, -1, -1)


def _digits() -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """(images float32[1797, 8, 8] of values 0 to 16, labels int64[1797])."""
    digits = load_digits()
    return digits.images.astype(np.float32), digits.target.astype(np.int64)


def _held_out(labels: np.ndarray[Any, Any], recipe: Recipe) -> np.ndarray[Any, Any]:
    """bool[n]: the validation images, the same share of every class."""
    generator = np.random.default_rng(recipe.split_seed)
    held_out = np.zeros(len(labels), dtype=bool)
    for digit in range(NUM_CLASSES):
        members = generator.permutation(np.flatnonzero(labels == digit))
        held_out[members[: round(len(members) * recipe.validation_share)]] = True
    return held_out
