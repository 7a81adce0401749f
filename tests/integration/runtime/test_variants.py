"""What saves time or memory changes no loss: real gloo ranks, every option beside the plain way at the same layout."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from patience import TRAINING_LIMIT_S

sys.path.append(str(Path(__file__).parent))


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """What `variants.py` found, by variant, as (zero stage, world, tensor-parallel size, tied, chunk, precision, recompute,
    compiled, images)."""
    folder = tmp_path_factory.mktemp("variants")
    command = [sys.executable, str(Path(__file__).with_name("variants.py")), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=TRAINING_LIMIT_S)
    assert done.returncode == 0, done.stderr[-5000:]
    return {tuple(row["variant"]): row for row in json.loads((folder / "result.json").read_text())}


@pytest.mark.slow
def test_the_loss_in_chunks_trains_as_the_loss_of_all_logits(rows):
    chunked = {variant: row for variant, row in rows.items() if variant[4] and not variant[7]}
    assert len(chunked) == 8
    for variant, row in chunked.items():
        plain = rows[(*variant[:4], 0, *variant[5:])]
        tolerance = {"abs": 1e-6, "rel": 1e-5} if variant[5] == "fp32" else {"rel": 2e-2}
        for own, other in zip(row["losses"], plain["losses"], strict=True):
            assert own == pytest.approx(other, **tolerance), variant
        assert plain["losses"][0][0] - plain["losses"][-1][0] > 0.02
        assert row["names"] == plain["names"]
        divided = variant[2] == 2 and not variant[3]  # then the plain way is taken
        assert row["chunked"] == (not divided) and not plain["chunked"]


@pytest.mark.slow
def test_activations_computed_again_change_no_bit(rows):
    recomputed = {variant: row for variant, row in rows.items() if variant[6] != "none" and not variant[7]}
    assert len(recomputed) == 10
    for variant, row in recomputed.items():
        plain = rows[(*variant[:6], "none", *variant[7:])]
        assert row["losses"] == plain["losses"], variant
        assert row["names"] == plain["names"]
        assert row["norms"] == 2 * plain["norms"] > 0, variant


@pytest.mark.slow
def test_a_compiled_model_trains_as_it_is_and_has_no_other_names(rows):
    compiled = {variant: row for variant, row in rows.items() if variant[7]}
    assert {variant[0] for variant in compiled} == {0, 1, 2, 3}
    for variant, row in compiled.items():
        plain = rows[(*variant[:7], False, "")]
        for own, other in zip(row["losses"], plain["losses"], strict=True):
            assert own == pytest.approx(other, rel=1e-5), variant
        assert row["names"] == plain["names"] and not plain["graphs"]
        assert 1 <= row["graphs"] <= 2 and row["breaks"] == [], variant


@pytest.mark.slow
def test_images_with_their_channels_innermost_train_the_same(rows):
    for stage in range(4):
        plain, last = (rows[(stage, 2, 1, True, 0, "fp32", "none", False, how)] for how in ("plain", "channels_last"))
        assert (plain["channels_last"], last["channels_last"]) == (False, True)
        for own, other in zip(last["losses"], plain["losses"], strict=True):
            assert own == pytest.approx(other, rel=1e-5)
