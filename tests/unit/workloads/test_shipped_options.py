"""The options that are shipped in conf/ are legal, and say what the workloads take."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest

from orchestrator.config import load_job_spec
from orchestrator.errors import ConfigError
from orchestrator.layout import legal
from workloads.gpt import GPT, train_tokenizer
from workloads.masked_lm import MaskedLM
from workloads.resnet import ResNet
from workloads.text_classifier import TextClassifier


def shipped(workload, model=None):
    return load_job_spec([f"workload={workload}", *([f"model={model}"] if model else [])])


class WithTokenizer:
    def file(self, name):
        assert name == "tokenizer.json"
        return train_tokenizer(["x = 1\n"], 300).to_str().encode()


@pytest.mark.parametrize("workload", ["gpt", "resnet", "text-classifier", "bert", "seq2seq"])
def test_one_two_and_three_workers_are_legal(workload):
    assert {1, 2, 3} <= {layout.world_size for layout in legal(shipped(workload))}


@pytest.mark.parametrize(("model", "low", "high"), [("gpt-2m", 1.8e6, 5e6), ("gpt-tiny", 1e4, 1e5)])
def test_the_language_models_have_their_size(model, low, high):
    subject = GPT(shipped("gpt", model))
    assert low < sum(p.numel() for p in subject.build_model(WithTokenizer()).parameters()) < high


def test_the_classifier_is_built():
    subject = ResNet(shipped("resnet"))
    assert 1e5 < sum(p.numel() for p in subject.build_model(None).parameters()) < 3e5


@pytest.mark.parametrize("data", ["python-packages", "debian-sections"])
def test_the_workloads_of_texts_take_the_shipped_data_and_models(data):
    classifier = TextClassifier(load_job_spec(["workload=text-classifier", f"data={data}"]))
    assert classifier.recipe == MaskedLM(load_job_spec(["workload=bert", f"data={data}"])).recipe  # one split and tokenizer for both
    assert 5e5 < sum(p.numel() for p in classifier.encoder.classifier(4096, 96, 18).parameters()) < 2e6


def test_texts_of_ones_own_need_a_path(tmp_path):
    with pytest.raises(ConfigError, match=r"data\.options\.path"):
        load_job_spec(["workload=text-classifier", "data=texts"])
    given = load_job_spec(["workload=text-classifier", "data=texts", f"data.options.path={tmp_path}"])
    assert TextClassifier(given).recipe.source == "files"
