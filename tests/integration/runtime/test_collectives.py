"""Gradients cross the network once per step at ZeRO 0 and 1, and what is sent is what the formula says: real gloo ranks."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from patience import TRAINING_LIMIT_S


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    folder = tmp_path_factory.mktemp("collectives")
    command = [sys.executable, str(Path(__file__).with_name("collectives.py")), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=TRAINING_LIMIT_S)
    assert done.returncode == 0, done.stderr[-5000:]
    return {(row["cell"][0], row["cell"][2], row["cell"][5]): row for row in json.loads((folder / "result.json").read_text())}


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("stage", [0, 1])
def test_gradients_are_reduced_after_the_last_micro_batch_only(rows, stage, precision):
    row = rows[stage, precision, 1]
    during = {name for name in row["calls"] if name.startswith("backward")}
    assert row["micro_batches"] == 3
    assert during == {f"backward 3 {'all_reduce' if stage == 0 else 'reduce'}"}


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_what_is_sent_is_what_the_formula_says(rows, stage, precision):
    row = rows[stage, precision, 1]
    sent, formula = row["sent"], row["formula"]
    assert set(sent) == set(formula)
    for name, size in sent.items():
        if (stage, name) == (3, "all_gather"):  # parameters as small as these are kept whole and gathered once
            assert 0 < size < formula[name] / 4
        else:
            assert size == pytest.approx(formula[name], rel=0.05), name  # padding


@pytest.mark.slow
def test_tensor_parallel_ranks_exchange_what_the_formula_says(rows):
    row = rows[0, "fp32", 2]
    assert row["micro_batches"] == 6
    assert row["sent"]["all_reduce"] == row["formula"]["all_reduce"]
