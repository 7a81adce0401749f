"""State of every ZeRO stage into every other, at worlds 1 to 3: real gloo ranks."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("matrix")
    command = [sys.executable, str(Path(__file__).with_name("matrix.py")), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr[-5000:]
    found = json.loads((folder / "result.json").read_text())
    calm = {tuple(row["cell"]): row for row in found if row["phase"] == "calm"}
    resumed = {tuple(map(tuple, row["cell"])): row for row in found if row["phase"] == "resumed"}
    return calm, resumed


@pytest.mark.slow
def test_the_same_layout_goes_on_bit_for_bit(results):
    calm, resumed = results
    same = {source: row for (source, target), row in resumed.items() if source == target}
    assert len(same) == 19
    for layout, row in same.items():
        assert row["losses"] == calm[layout]["losses"][3:], layout
        assert row["digest"] == calm[layout]["digest"], layout
        assert row["steps"] == calm[layout]["steps"] == (6 if layout[3] == "adamw" else 0)


@pytest.mark.slow
def test_any_other_layout_goes_on_within_rounding(results):
    calm, resumed = results
    crossed = {pair: row for pair, row in resumed.items() if pair[0] != pair[1]}
    assert {(source[0], target[0]) for source, target in crossed} >= {(s, t) for s in range(4) for t in range(4) if s != t}
    for (source, target), row in crossed.items():
        tolerance = 1e-5 if source[2] == "fp32" else 1e-3
        losses, expected = ([loss for loss, _ in some] for some in (row["losses"], calm[source]["losses"][3:]))
        assert losses == pytest.approx(expected, abs=tolerance), (source, target)
        assert row["steps"] == calm[source]["steps"]


@pytest.mark.slow
def test_training_moves_the_loss_enough_for_these_tests_to_fail(results):
    calm, _ = results
    for row in calm.values():
        first, last = row["losses"][3][0], row["losses"][5][0]
        assert abs(first - last) > 1e-3
