"""Whole ranks under tensor parallelism: data, loss, evaluation, sample and checkpoints are those of one rank."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent))

from ranks import Group, spec_of

LLAMA = {"workload__entrypoint": "llama_workload:Threes", "training__max_steps": 20, "checkpoint__interval_steps": 10}
LLAMA |= {"training__eval_interval_steps": 10, "training__sample_at_evaluation": True}


def job(folder, workers, together, zero_stage=1, **changes):
    parallel = {"parallelism__tensor_parallel_size": together, "parallelism__zero_stage": zero_stage}
    spec = spec_of(folder / "store", resources__num_workers=workers, **LLAMA | parallel | changes)
    return Group(folder, workers, spec)


@pytest.fixture(scope="module")
def one_rank(tmp_path_factory):
    return job(tmp_path_factory.mktemp("one"), 1, 1).run()


def artifact(group, name):
    return group.store.get(f"jobs/job/artifacts/{name}").decode()


@pytest.mark.slow
@pytest.mark.parametrize(("workers", "zero_stage"), [(2, 0), (4, 3)])
def test_a_group_of_ranks_trains_evaluates_and_samples_as_one(tmp_path, one_rank, workers, zero_stage):
    group = job(tmp_path, workers, 2, zero_stage).run()
    found, expected = group.history(), one_rank.history()
    assert found.keys() == expected.keys() == set(range(1, 21))
    for step, (loss, lr, norm, ids) in expected.items():
        assert found[step] == (pytest.approx(loss, abs=1e-5), lr, pytest.approx(norm, abs=1e-4), ids)
    for own, other in zip(group.of("evaluated"), one_rank.of("evaluated"), strict=True):
        assert own["values"]["count"] == other["values"]["count"] == 31 * 8
        assert own["values"]["loss"] == pytest.approx(other["values"]["loss"], abs=1e-5)
    for name in ("sample-0.txt", "sample-10.txt", "sample-20.txt", "sample.txt"):
        assert artifact(group, name) == artifact(one_rank, name)
    assert artifact(group, "sample-20.txt") == artifact(group, "sample.txt") != artifact(group, "sample-0.txt")
    assert expected[1][0] - expected[20][0] > 0.5


@pytest.mark.slow
def test_a_job_goes_on_with_and_without_tensor_parallelism(tmp_path, one_rank):
    job(tmp_path, 2, 2, training__max_steps=20).run()
    manifest_key = next(ref.key for ref in Group(tmp_path, 1, {}).log.chain() if ref.step == 10)
    for workers, together, zero_stage in ((1, 1, 0), (4, 2, 2)):
        again = job(tmp_path, workers, together, zero_stage).run([manifest_key])
        assert again.of("restored")[0]["step"] == 10
        found, expected = again.losses(), one_rank.losses()
        assert set(found) == set(range(11, 21))
        assert [found[step] for step in found] == pytest.approx([expected[step] for step in found], abs=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"workload__entrypoint": "tiny_workload:Tiny"}, "tensor_parallel_size=2 is not possible for the model Sequential"),
        ({"workload__options": {"heads": 1}}, "leaves a rank without work"),
    ],
)
def test_a_model_that_cannot_be_divided_is_refused(tmp_path, changes, said):
    group = job(tmp_path, 2, 2, **changes).start()
    assert group.finish() == [1, 1]
    assert said in json.dumps(group.of("error"))
