"""Other views of the training images: crops and mirror images, drawn anew for each image in each epoch.

All of a batch are made at once, on the device of the model.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch.nn import functional

from .requirements import require


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """`workload.options`; training only."""

    label_smoothing: float = 0.1
    """Share of each target that is spread over all classes."""
    min_crop: float = 1.0
    """Smallest share of an image's area that a crop keeps; 1: no crops. Szegedy et al. 2015 take 0.08."""
    max_crop_ratio: float = 4 / 3
    """A crop's longer side by its shorter one, at most."""
    flip: float = 0.0
    """Share of the images that are mirrored left to right."""

    def __post_init__(self) -> None:
        ok = 0 <= self.label_smoothing < 1
        require(ok, "workload.options.label_smoothing", self.label_smoothing, "0 up to, but not, 1")
        require(0 < self.min_crop <= 1, "workload.options.min_crop", self.min_crop, "more than 0, up to 1 (no crops)")
        require(1 <= self.max_crop_ratio <= 10, "workload.options.max_crop_ratio", self.max_crop_ratio, "1 (squares) to 10")
        require(0 <= self.flip <= 1, "workload.options.flip", self.flip, "0 (none) to 1 (all)")

    @property
    def num_draws(self) -> int:
        """Random numbers that `apply` takes for each image."""
        return 5 if self.min_crop < 1 or self.flip > 0 else 0

    def apply(self, images: torch.Tensor, draws: torch.Tensor, size: int) -> torch.Tensor:
        """float[n, channels, height, width], draws int64[n, 5] below 2**32 -> float[n, channels, size, size].

        A crop's share of the area is uniform, the logarithm of its ratio too, as is its place. Pixels are interpolated bilinearly.
        """
        area, ratio, across, down, mirrored = (draws.double() / 2**32).to(images.dtype).unbind(1)
        kept = self.min_crop + (1 - self.min_crop) * area
        stretch = torch.exp((2 * ratio - 1) * (math.log(self.max_crop_ratio) / 2)) if self.min_crop < 1 else torch.ones_like(ratio)
        width, height = (kept.sqrt() * stretch).clamp(max=1), (kept.sqrt() / stretch).clamp(max=1)
        sign = torch.where(mirrored < self.flip, -1.0, 1.0).to(images.dtype)
        left, top, zero = (2 * across - 1) * (1 - width), (2 * down - 1) * (1 - height), torch.zeros_like(width)
        places = torch.stack([sign * width, zero, left, zero, height, top], 1).view(-1, 2, 3)
        grid = functional.affine_grid(places, [len(images), images.shape[1], size, size], align_corners=False)
        return functional.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)
