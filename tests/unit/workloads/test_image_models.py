"""Published classifiers of images: their sizes, and a small one of each family that learns the digits."""

from __future__ import annotations

import os
import sys
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch
from torch import nn

from orchestrator.config import load_job_spec
from orchestrator.errors import ConfigError
from workloads.image_models import published_of
from workloads.resnet import ResNet

sys.path.append(str(Path(__file__).parent))
from kept import Kept, evaluated, spec_of, train

SMALL = {
    "resnet": {"image_size": 32, "hidden_sizes": [16, 32], "depths": [1, 1], "norm_groups": 8},
    "convnext": {"image_size": 32, "hidden_sizes": [16, 32, 32, 32], "depths": [1, 1, 1, 1]},
    "vit": {"image_size": 16, "hidden_size": 32, "intermediate_size": 64, "num_layers": 2, "num_heads": 2, "patch_size": 4},
}


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def digits():
    kept = Kept()
    workload().prepare(kept)
    return kept


def workload(**model):
    return ResNet(spec_of("workloads.resnet:ResNet", model))


@pytest.mark.parametrize(
    ("model", "millions"),
    [
        ("resnet-18", 11.69), ("resnet-50", 25.56), ("resnet-101", 44.55),
        ("convnext-tiny", 28.59), ("vit-tiny", 5.72), ("vit-base", 86.57),
    ],
)  # fmt: skip
def test_the_shipped_models_have_the_published_size(model, millions):
    options = dict(load_job_spec(["workload=resnet", f"model={model}"]).model.options)
    published = {"image_size": 224} | ({"patch_size": 16} if "patch_size" in options else {})
    with torch.device("meta"):
        built = published_of({**options, **published}).build(1000)
    assert sum(parameter.numel() for parameter in built.parameters()) / 1e6 == pytest.approx(millions, abs=0.006)


@pytest.mark.parametrize(("family", "steps"), [("resnet", 45), ("convnext", 50), ("vit", 300)])
def test_a_small_one_of_each_family_learns(family, steps, digits):
    subject = workload(family=family, **SMALL[family])
    torch.manual_seed(0)
    model = subject.build_model(digits)
    before = evaluated(subject, model, digits)
    train(subject, model, digits, steps=steps, batch_size=48, lr=3e-3)
    after = evaluated(subject, model, digits)
    assert before["accuracy"] < 0.3 < 0.5 < after["accuracy"], family
    assert list(model.buffers()) == [] and after["loss"] < before["loss"] * 0.7


def test_batch_norm_is_there_for_who_asks():
    models = {groups: workload(family="resnet", norm_groups=groups).build_model(None) for groups in (0, 32)}
    kinds = {groups: {type(module) for module in model.modules()} for groups, model in models.items()}
    assert nn.BatchNorm2d in kinds[0] and nn.GroupNorm not in kinds[0]
    assert nn.GroupNorm in kinds[32] and nn.BatchNorm2d not in kinds[32]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"family": "vgg"}, "model.options.family=vgg is not possible: allowed is resnet, convnext, vit"),
        ({"family": "vit", "depths": [1]}, "model.options.depths is no setting"),
        ({"family": "vit", "image_size": 30, "patch_size": 4}, "model.options.image_size=30 is not possible: allowed is a multiple of 4"),
        ({"family": "resnet", "image_size": 8}, "model.options.image_size=8 is not possible: allowed is a multiple of 32"),
        ({"family": "vit", "num_heads": 5}, "model.options.num_heads=5 is not possible: allowed is a divisor of hidden_size=192"),
        ({"family": "resnet", "norm_groups": 48}, "model.options.norm_groups=48 is not possible: allowed is 0"),
        ({"family": "resnet", "layer_type": "wide"}, "model.options.layer_type=wide is not possible: allowed is basic or bottleneck"),
        ({"family": "resnet", "depths": [1]}, "model.options.depths="),
        ({"family": "convnext", "depths": [1, 1]}, "model.options.depths="),
        ({"family": "convnext", "drop_path_rate": 1.0}, "model.options.drop_path_rate=1.0"),
    ],
)
def test_an_option_that_cannot_be_is_refused_by_its_flag(options, message):
    with pytest.raises(ConfigError, match=message):
        workload(**options)
