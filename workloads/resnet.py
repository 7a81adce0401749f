"""`resnet`: a convolutional network with residual connections, or another classifier of images, learns to tell images apart.

The images are handwritten digits (`digits`), or those of a folder (`image_folder`): `data.options` with a `path`. Records have an `image`
[channels, height, width] and a `label`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional
from transformers import ResNetConfig, ResNetForImageClassification

from orchestrator.spec import JobSpec, from_dict
from orchestrator.workload import DatasetSink, DatasetView

from .augmentation import Augmentation
from .digits import Digits
from .image_folder import ImageFolder
from .image_models import NUM_CHANNELS, Published, published_of, use_group_norm
from .requirements import require
from .scores import figures, report_files, sums_of


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

    def build(self, num_classes: int, num_channels: int) -> nn.Module:
        config = ResNetConfig(
            num_channels=num_channels,
            embedding_size=self.embedding_size,
            hidden_sizes=list(self.hidden_sizes),
            depths=list(self.depths),
            layer_type="basic",
            num_labels=num_classes,
        )
        model: nn.Module = ResNetForImageClassification(config)
        stem = model.resnet.embedder
        stem.embedder.convolution = nn.Conv2d(num_channels, self.embedding_size, 3, padding=1, bias=False)
        nn.init.kaiming_normal_(stem.embedder.convolution.weight, mode="fan_out", nonlinearity="relu")
        stem.pooler = nn.Identity()
        return use_group_norm(model, self.norm_groups)


class ResNet:
    """The workload. `orchestrator.workload.Workload` tells what each method promises."""

    tokens_per_sample = 0

    def __init__(self, spec: JobSpec) -> None:
        self.images: Images = _images_of(spec.data.options)
        self.architecture: Architecture | Published = _architecture_of(spec.model.options)
        self.augmentation: Augmentation = from_dict(Augmentation, spec.workload.options, "workload.options.")
        self._statistics: tuple[list[float], list[float]] | None = None
        self._on_device: torch.Tensor | None = None

    @property
    def draws_per_sample(self) -> int:
        return self.augmentation.num_draws

    def source_fingerprint(self) -> str:
        return self.images.fingerprint()

    def prepare(self, sink: DatasetSink) -> None:
        self.images.prepare(sink)

    def build_model(self, dataset: DatasetView) -> nn.Module:
        self._statistics = self.images.statistics(dataset)
        num_classes = len(self.images.classes(dataset))
        if isinstance(self.architecture, Architecture):
            return self.architecture.build(num_classes, self.images.num_channels)
        return self.architecture.build(num_classes)

    def loss(self, model: nn.Module, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        logits = self._logits(model, batch)
        return functional.cross_entropy(logits, batch["label"], label_smoothing=self.augmentation.label_smoothing)

    def evaluate(self, model: nn.Module, batch: Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
        return sums_of(self._logits(model, batch), batch["label"])

    def metrics(self, sums: Mapping[str, np.ndarray[Any, Any]]) -> Mapping[str, float]:
        return figures(sums)

    def report(self, sums: Mapping[str, np.ndarray[Any, Any]], dataset: DatasetView) -> Mapping[str, bytes]:
        return report_files(sums, self.images.classes(dataset), "images")

    def _logits(self, model: nn.Module, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        dtype = next(model.parameters()).dtype  # bf16 where the engine computes in bf16
        images = self._inputs(batch["image"], batch.get("draws")).to(dtype)
        logits: torch.Tensor = model(pixel_values=images).logits
        return logits.float()

    def _inputs(self, images: torch.Tensor, draws: torch.Tensor | None) -> torch.Tensor:
        """What the model reads: standardised, cropped where there are `draws`, and of the published model's size and channels."""
        if self._statistics:
            if self._on_device is None:
                self._on_device = torch.tensor(self._statistics, device=images.device)[..., None, None]
            images = (images.float() - self._on_device[0]) / self._on_device[1]
        size = images.shape[-1] if isinstance(self.architecture, Architecture) else self.architecture.image_size
        if draws is not None:
            images = self.augmentation.apply(images.float(), draws, size)
        elif images.shape[-1] != size:
            images = functional.interpolate(images, size=(size, size), mode="bilinear", antialias=True)
        return images if isinstance(self.architecture, Architecture) else images.expand(-1, NUM_CHANNELS, -1, -1)


Images = Digits | ImageFolder


def _images_of(options: Mapping[str, Any]) -> Images:
    """`data.options` as the source that they name."""
    images: Images = from_dict(ImageFolder if "path" in options else Digits, options, "data.options.")
    return images


def _architecture_of(options: Mapping[str, Any]) -> Architecture | Published:
    """The shape of this module, or with `family` a published one."""
    if "family" in options:
        return published_of(options)
    small: Architecture = from_dict(Architecture, options, "model.options.")
    return small
