"""scikit-learn's handwritten digits: 1,797 of 8 x 8 pixels, from the UCI collection.

Records are `image: float32[1, 8, 8]` (standardised with the training images' mean and deviation) and `label: int64`.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn.datasets import load_digits

from orchestrator.spec import to_dict
from orchestrator.workload import DatasetSink, DatasetView

from .requirements import require

NUM_CLASSES = 10
STATISTICS_FILE = "statistics.json"
_FORMAT = 1  # of the recipe: a change here makes every data set anew


@dataclass(frozen=True, kw_only=True)
class Digits:
    """`data.options`."""

    validation_share: float = 0.2
    """Share of each class's images that is held out."""
    split_seed: int = 0

    num_channels = 1

    def __post_init__(self) -> None:
        ok = 0.01 <= self.validation_share <= 0.9
        require(ok, "data.options.validation_share", self.validation_share, "0.01 to 0.9")
        require(self.split_seed >= 0, "data.options.split_seed", self.split_seed, "0 or more")

    def fingerprint(self) -> str:
        images, labels = _digits()
        digest = hashlib.blake2b(digest_size=20)
        digest.update(json.dumps([_FORMAT, to_dict(self)], sort_keys=True).encode())
        digest.update(images.tobytes() + labels.tobytes())
        return digest.hexdigest()

    def prepare(self, sink: DatasetSink) -> None:
        images, labels = _digits()
        sink.progress(f"splitting {len(labels):,} images of digits")
        held_out = self._held_out(labels)
        mean, deviation = float(images[~held_out].mean()), float(images[~held_out].std())
        sink.add_file(STATISTICS_FILE, json.dumps({"mean": mean, "deviation": deviation}).encode())
        records = np.empty(len(labels), dtype=[("image", "<f4", (1, 8, 8)), ("label", "<i8")])
        records["image"][:, 0] = (images - mean) / deviation
        records["label"] = labels
        sink.write("train", records[~held_out])
        sink.write("validation", records[held_out])

    def classes(self, dataset: DatasetView) -> list[str]:
        return [str(digit) for digit in range(NUM_CLASSES)]

    def statistics(self, dataset: DatasetView) -> None:
        """None: the images are stored standardised."""

    def _held_out(self, labels: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """bool[n]: the validation images, the same share of every class."""
        generator = np.random.default_rng(self.split_seed)
        held_out = np.zeros(len(labels), dtype=bool)
        for digit in range(NUM_CLASSES):
            members = generator.permutation(np.flatnonzero(labels == digit))
            held_out[members[: round(len(members) * self.validation_share)]] = True
        return held_out


def _digits() -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """(images float32[1797, 8, 8] of values 0 to 16, labels int64[1797])."""
    digits = load_digits()
    return digits.images.astype(np.float32), digits.target.astype(np.int64)
