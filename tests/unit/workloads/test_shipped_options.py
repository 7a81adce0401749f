"""The options that are shipped in conf/ are legal, and say what the workloads take."""

from __future__ import annotations

import os
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import yaml

from orchestrator.layout import legal
from orchestrator.spec import DataSpec, JobSpec, ModelSpec, OptimizerSpec, TrainingSpec, WorkloadSpec, from_dict
from workloads.gpt import GPT, train_tokenizer
from workloads.resnet import ResNet

CONF = Path(__file__).parents[3] / "conf"


def read(group, name):
    return yaml.safe_load((CONF / group / f"{name}.yaml").read_text())


def chosen(config, group):
    return next(entry[f"override /{group}"] for entry in config["defaults"] if f"override /{group}" in entry)


def shipped(workload, model=None):
    config = read("workload", workload)
    return JobSpec(
        workload=from_dict(WorkloadSpec, config["workload"]),
        model=from_dict(ModelSpec, read("model", model or chosen(config, "model"))),
        data=from_dict(DataSpec, read("data", chosen(config, "data"))),
        training=from_dict(TrainingSpec, config["training"]),
        optimizer=from_dict(OptimizerSpec, config["optimizer"]),
    )


class WithTokenizer:
    def file(self, name):
        assert name == "tokenizer.json"
        return train_tokenizer(["x = 1\n"], 300).to_str().encode()


@pytest.mark.parametrize("workload", ["gpt", "resnet"])
def test_one_two_and_three_workers_are_legal(workload):
    assert {1, 2, 3} <= {layout.world_size for layout in legal(shipped(workload))}


@pytest.mark.parametrize(("model", "low", "high"), [("gpt-2m", 1.8e6, 5e6), ("gpt-tiny", 1e4, 1e5)])
def test_the_language_models_have_their_size(model, low, high):
    subject = GPT(shipped("gpt", model))
    assert low < sum(p.numel() for p in subject.build_model(WithTokenizer()).parameters()) < high


def test_the_classifier_is_built():
    subject = ResNet(shipped("resnet"))
    assert 1e5 < sum(p.numel() for p in subject.build_model(None).parameters()) < 3e5
