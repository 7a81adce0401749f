"""Whole ranks that keep an average of the weights: evaluation by it, and jobs that switch it on or off when they go on."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent))

from ranks import Group, spec_of

DECAY = {"training__ema_decay": 0.75}


def job(folder, job_id="job", **changes):
    return Group(folder, 2, spec_of(folder / "store", parallelism__zero_stage=2, **changes), job_id)


def at(group, step):
    return next(ref.key for ref in group.log.chain() if ref.step == step)


def roles(group, commit):
    return {piece.role for piece in group.log.load_manifest(group.log.read(commit)).slices}


def evaluated(group):
    return {message["step"]: message["values"]["loss"] for message in group.of("evaluated")}


@pytest.mark.slow
def test_a_job_is_evaluated_by_its_average_and_trains_as_without(tmp_path):
    plain = job(tmp_path, "plain", training__eval_interval_steps=3).run()
    averaged = job(tmp_path, training__eval_interval_steps=3, **DECAY).run()
    assert averaged.history() == plain.history()
    assert evaluated(averaged)[0] == evaluated(plain)[0]
    assert evaluated(averaged)[6] - evaluated(plain)[6] > 1e-3  # it lags behind
    assert roles(averaged, at(averaged, 3)) - {"ema"} == roles(plain, at(plain, 3)) == {"param", "exp_avg", "exp_avg_sq"}

    off = job(tmp_path, training__eval_interval_steps=3).run([at(averaged, 3)])
    assert evaluated(off)[6] == evaluated(plain)[6] and "ema" not in roles(off, at(off, 6))
    on = job(tmp_path, "plain", training__eval_interval_steps=1, **DECAY).run([at(plain, 3)])
    assert on.losses() == {s: x for s, x in plain.losses().items() if s > 3}
    assert "ema" in roles(on, at(on, 6))
    assert evaluated(plain)[3] > evaluated(on)[4] > evaluated(on)[6] > evaluated(plain)[6]  # it began as the weights of step 3
