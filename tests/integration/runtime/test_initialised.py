"""A model built on the meta device has the same weights in every layout, and no rank ever holds more than its share and one module."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from patience import TRAINING_LIMIT_S

MODULE = 37 * 24
"""Elements of the largest module: one matrix of an MLP."""


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    folder = tmp_path_factory.mktemp("initialised")
    command = [sys.executable, str(Path(__file__).with_name("initialised.py")), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=TRAINING_LIMIT_S)
    assert done.returncode == 0, done.stderr[-5000:]
    return [dict(row, **dict(zip(FIELDS, row["cell"], strict=False))) for row in json.loads((folder / "result.json").read_text())]


FIELDS = ("zero_stage", "world", "precision", "optimizer", "offload", "together", "model", "stages")


@pytest.mark.slow
def test_the_weights_are_the_same_bits_in_every_layout(found):
    one = {row["model"]: row["digests"] for row in found if row["world"] == 1}
    assert len(one["tied"]) + 1 == len(one["untied"]) and len(found) == 14
    for row in found:
        for name, (whole, narrow) in row["digests"].items():
            expected, rounded = one[row["model"]][name]
            assert whole == (rounded if row["precision"] == "bf16" else expected), (row["cell"], name)
            assert narrow == rounded, (row["cell"], name)
    matrices = [whole for name, (whole, _) in one["untied"].items() if "norm" not in name]
    assert len(set(matrices)) == len(matrices) == 8 * 7 + 2, "no two modules draw the same numbers"


@pytest.mark.slow
def test_a_rank_never_holds_more_than_its_share_and_one_module(found):
    for row in found:
        shares = row["world"] if row["zero_stage"] == 3 else row["stages"]
        padding = row["world"] * len(row["digests"]) if row["zero_stage"] == 3 else MODULE  # stages are not of quite the same size
        for held in row["held"]:
            assert row["elements"] / shares * 0.9 < held <= row["elements"] / shares + MODULE + padding, row["cell"]
