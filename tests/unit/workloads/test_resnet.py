"""The digits workload: split, model, sums and report."""

from __future__ import annotations

import json
import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pytest
import torch
from torch import nn

from orchestrator.errors import ConfigError
from orchestrator.spec import DataSpec, JobSpec, ModelSpec, TrainingSpec, WorkloadSpec
from workloads.resnet import ResNet


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


def workload(model=(), data=(), options=()):
    return ResNet(
        JobSpec(
            workload=WorkloadSpec(name="resnet", entrypoint="workloads.resnet:ResNet", options=dict(options)),
            model=ModelSpec(name="small", options=dict(model)),
            data=DataSpec(name="digits", options=dict(data)),
            training=TrainingSpec(max_steps=1, global_batch_size=1, micro_batch_size=1),
        )
    )


class Kept:
    def __init__(self):
        self.splits, self.files = {}, {}

    def write(self, split, records):
        self.splits[split] = records

    def add_file(self, name, content):
        self.files[name] = content

    def progress(self, message):
        pass


@pytest.fixture(scope="module")
def prepared():
    kept = Kept()
    workload().prepare(kept)
    return kept


def batch(records):
    return {"image": torch.from_numpy(records["image"].copy()), "label": torch.from_numpy(records["label"].copy())}


def test_the_split_is_stratified_disjoint_and_whole(prepared):
    train, validation = prepared.splits["train"], prepared.splits["validation"]
    assert len(train) + len(validation) == 1797
    for digit in range(10):
        held_out, all_of_it = (validation["label"] == digit).sum(), (validation["label"] == digit).sum() + (train["label"] == digit).sum()
        assert abs(held_out / all_of_it - 0.2) < 0.01
    both = [{image.tobytes() for image in part["image"]} for part in (train, validation)]
    assert not both[0] & both[1]


def test_the_images_are_standardised_by_the_training_images(prepared):
    train = prepared.splits["train"]["image"]
    assert train.shape[1:] == (1, 8, 8)
    assert abs(train.mean()) < 1e-3 and abs(train.std() - 1) < 1e-3
    statistics = json.loads(prepared.files["statistics.json"])
    pixels = train * statistics["deviation"] + statistics["mean"]
    assert np.allclose(pixels, pixels.round(), atol=1e-3) and pixels.round().max() == 16


def test_preparing_twice_gives_the_same_and_another_seed_another_split(prepared):
    again, other = Kept(), Kept()
    workload().prepare(again)
    workload(data={"split_seed": 1}).prepare(other)
    assert all(again.splits[name].tobytes() == prepared.splits[name].tobytes() for name in ("train", "validation"))
    assert other.splits["validation"].tobytes() != prepared.splits["validation"].tobytes()
    prints = {workload(data=data).source_fingerprint() for data in ({}, {"split_seed": 1}, {"validation_share": 0.3})}
    assert len(prints) == 3 and workload().source_fingerprint() in prints


def test_the_model_has_residual_convolutions_and_no_state_that_differs_by_rank():
    model = workload().build_model(None)
    assert sum(isinstance(module, nn.Conv2d) for module in model.modules()) >= 13
    assert list(model.buffers()) == []
    images = torch.randn(6, 1, 8, 8)
    whole = model(pixel_values=images).logits
    assert torch.allclose(whole[:2], model(pixel_values=images[:2]).logits, atol=1e-5)


def test_a_few_steps_learn(prepared):
    subject = workload(model={"hidden_sizes": [8, 16], "depths": [1, 1], "embedding_size": 8})
    torch.manual_seed(0)
    model = subject.build_model(prepared)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    before = evaluated(subject, model, prepared)
    for step in range(60):
        subject.loss(model, batch(np.roll(prepared.splits["train"], -96 * step)[:96])).backward()
        optimizer.step()
        optimizer.zero_grad()
    after = evaluated(subject, model, prepared)
    assert before["accuracy"] < 0.3 < 0.85 < after["accuracy"]
    assert after["loss"] < before["loss"] / 2


def evaluated(subject, model, prepared):
    with torch.no_grad():
        sums = subject.evaluate(model, batch(prepared.splits["validation"]))
    return subject.metrics({name: value.numpy() for name, value in sums.items()})


def test_the_sums_of_parts_are_those_of_the_whole(prepared):
    subject, records = workload(), prepared.splits["validation"][:50]
    torch.manual_seed(0)
    model = subject.build_model(prepared)
    with torch.no_grad():
        whole = subject.evaluate(model, batch(records))
        parts = [subject.evaluate(model, batch(part)) for part in (records[:13], records[13:])]
    assert int(whole["count"]) == 50 == int(whole["confusion_matrix"].sum())
    assert torch.equal(whole["confusion_matrix"], sum(part["confusion_matrix"] for part in parts))
    assert float(whole["loss_sum"]) == pytest.approx(float(sum(part["loss_sum"] for part in parts)), rel=1e-5)
    labels = torch.from_numpy(records["label"].copy())
    assert torch.equal(whole["confusion_matrix"].sum(dim=1), torch.bincount(labels, minlength=10))


def test_label_smoothing_is_for_training_only(prepared):
    records = batch(prepared.splits["validation"][:8])
    torch.manual_seed(0)
    model = workload().build_model(prepared)
    losses = [workload(options={"label_smoothing": share}).loss(model, records).item() for share in (0.0, 0.5)]
    sums = [workload(options={"label_smoothing": share}).evaluate(model, records)["loss_sum"].item() for share in (0.0, 0.5)]
    assert losses[0] != losses[1] and sums[0] == sums[1] == pytest.approx(losses[0] * 8, rel=1e-5)


def test_the_report_has_matrix_scores_and_a_picture():
    matrix = np.eye(10, dtype=np.int64) * 30
    bins = dict.fromkeys(("bin_count", "bin_right", "bin_confidence"), np.zeros(15))
    files = workload().report({"confusion_matrix": matrix.astype(np.float64), **bins}, None)
    assert json.loads(files["confusion_matrix.json"])["counts"] == matrix.tolist()
    assert [row["f1"] for row in json.loads(files["per_class.json"])] == [1.0] * 10
    assert files["confusion_matrix.png"].startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"data": {"validation_share": 0.0}}, "data.options.validation_share=0.0"),
        ({"model": {"depths": [1]}}, "model.options.depths="),
        ({"model": {"norm_groups": 5}}, "model.options.norm_groups=5"),
        ({"options": {"label_smoothing": 1.0}}, "workload.options.label_smoothing=1.0"),
        ({"model": {"depht": [1]}}, r"model.options.depht is no setting.*Did you mean 'depths'"),
    ],
)
def test_an_option_that_cannot_be_is_refused_by_its_flag(arguments, message):
    with pytest.raises(ConfigError, match=message):
        workload(**arguments)
