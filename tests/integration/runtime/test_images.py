"""Real ranks read a folder of images, train on drawn crops, and go on from a commit as if nothing had been."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

sys.path.insert(0, str(Path(__file__).parent))

from ranks import Group, spec_of

from orchestrator.checkpoints.restore import export_tensors


@pytest.fixture
def folder(tmp_path):
    """40 digits, few enough for more than one epoch."""
    digits = load_digits()
    for number, (image, label) in enumerate(zip(digits.images[:40], digits.target[:40], strict=True)):
        path = tmp_path / "digits" / f"{label % 2}" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((image * 255 / 16).astype(np.uint8)).save(path)
    return tmp_path / "digits"


def spec_for(store, folder):
    settings = {
        "workload__entrypoint": "workloads.resnet:ResNet", "workload__options": {"min_crop": 0.3, "flip": 0.5},
        "model__options": {"hidden_sizes": [8], "depths": [1], "embedding_size": 8}, "data__name": "images",
        "data__options": {"path": str(folder), "image_size": 8, "validation_share": 0.2},
    }  # fmt: skip
    return spec_of(store, **settings)


def tensors(group):
    return export_tensors(group.store, group.log.load_manifest(group.log.chain()[0]))


@pytest.mark.slow
def test_drawn_crops_are_the_same_after_a_restart(tmp_path, folder):
    spec = spec_for(tmp_path / "store", folder)
    calm = Group(tmp_path, 1, spec, job_id="calm").run()
    half = calm.log.chain()[1]
    again = Group(tmp_path, 1, spec, job_id="calm").run([half.key])
    assert {step: calm.history()[step] for step in (4, 5, 6)} == again.history()
    assert all(np.array_equal(tensors(again)[name], value) for name, value in tensors(calm).items())
