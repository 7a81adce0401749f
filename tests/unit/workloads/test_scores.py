"""Scores of classifiers: by hand, and sums that add up over batches."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from sklearn.metrics import f1_score, precision_recall_fscore_support

from workloads.scores import NUM_BINS, draw, draw_calibration, figures, per_class, report_files, sums_of


def summed(*parts):
    return {name: sum(part[name] for part in parts).numpy() for name in parts[0]}


@pytest.fixture
def predictions():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(200, 5, generator=generator) * 3, torch.randint(4, (200,), generator=generator)  # class 4 has no sample


def test_scores_per_class_by_hand():
    matrix = np.zeros((3, 3), dtype=np.int64)
    matrix[0, 0], matrix[0, 1], matrix[1, 1] = 3, 1, 2
    zero, one, two = per_class(matrix, ["a", "b", "c"])
    assert (zero.name, zero.precision, zero.recall, zero.samples) == ("a", 1.0, 0.75, 4)
    assert (one.precision, one.recall, one.f1) == (pytest.approx(2 / 3), 1.0, pytest.approx(0.8))
    assert (two.precision, two.recall, two.f1, two.samples) == (0.0, 0.0, 0.0, 0)


def test_they_are_those_of_scikit_learn(predictions):
    logits, labels = predictions
    read = logits.argmax(-1)
    sums = summed(sums_of(logits, labels))
    expected = precision_recall_fscore_support(labels, read, labels=range(5), zero_division=0)
    found = [(row.precision, row.recall, row.f1, row.samples) for row in per_class(sums["confusion_matrix"])]
    assert np.allclose(np.transpose(found), np.array(expected, dtype=float))
    told = figures(sums)
    assert told["macro_f1"] == pytest.approx(f1_score(labels, read, labels=range(4), average="macro"))
    assert told["accuracy"] == pytest.approx((read == labels).float().mean().item())
    assert told["loss"] == pytest.approx(torch.nn.functional.cross_entropy(logits, labels).item())


def test_the_sums_of_parts_are_those_of_the_whole(predictions):
    logits, labels = predictions
    whole, parts = summed(sums_of(logits, labels)), summed(*map(sums_of, logits.split(37), labels.split(37)))
    for name, value in whole.items():
        exact = value.dtype == np.int64
        assert np.array_equal(parts[name], value) if exact else np.allclose(parts[name], value), name
    assert whole["bin_count"].sum() == whole["count"] == 200


def test_the_calibration_error_by_hand():
    sure = torch.tensor([[0.0, 2.0]]).repeat(4, 1)  # says 1 with probability 0.881
    probability = torch.softmax(sure[0].double(), -1)[1].item()
    three_of_four = figures(summed(sums_of(sure, torch.tensor([1, 1, 1, 0]))))
    assert three_of_four["calibration_error"] == pytest.approx(abs(0.75 - probability), abs=1e-9)
    certain = summed(sums_of(torch.tensor([[0.0, 99.0]]), torch.tensor([1])))
    assert certain["bin_count"][NUM_BINS - 1] == 1 and figures(certain)["calibration_error"] == pytest.approx(0.0)


def test_the_reliability_diagram_shows_the_bins(predictions):
    sums = summed(sums_of(*predictions))
    assert draw_calibration(sums) != draw_calibration({**sums, "bin_right": sums["bin_count"]})
    assert draw_calibration({name: np.zeros(NUM_BINS) for name in ("bin_count", "bin_right", "bin_confidence")}).startswith(b"\x89PNG")


@pytest.mark.parametrize("classes", [3, 20, 60])
def test_the_report_names_the_classes(classes):
    names = [f"class {number}" for number in range(classes)]
    sums = summed(sums_of(torch.eye(classes) * 9, torch.arange(classes)))
    files = report_files(sums, names, "texts")
    assert json.loads(files["confusion_matrix.json"])["classes"] == names
    assert [row["f1"] for row in json.loads(files["per_class.json"])] == [1.0] * classes
    assert sum(json.loads(files["calibration.json"])["bin_count"]) == classes
    assert all(files[name].startswith(b"\x89PNG") for name in ("confusion_matrix.png", "calibration.png"))
    assert draw(np.zeros((classes, classes), dtype=np.int64)).startswith(b"\x89PNG")
