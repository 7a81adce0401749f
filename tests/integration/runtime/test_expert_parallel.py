"""Whole ranks with dealt out experts: the shipped language model trains, evaluates, samples and goes on as on one rank."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent))

from ranks import Group, spec_of

MIXTURE = {"hidden_size": 16, "intermediate_size": 24, "num_layers": 2, "num_heads": 2, "num_experts": 4}
JOB = {
    "workload__entrypoint": "workloads.gpt:GPT", "workload__options": {"new_tokens": 20}, "model__options": MIXTURE,
    "training__max_steps": 20, "training__global_batch_size": 16, "training__micro_batch_size": 2, "training__eval_samples": 6,
    "checkpoint__interval_steps": 10,
}  # fmt: skip


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    folder = tmp_path_factory.mktemp("source")
    for number in range(40):
        (folder / f"module{number}.py").write_text(f"def function_{number}(argument):\n    return argument + {number}\n" * 40)
    return {"root": str(folder), "vocab_size": 300, "block_size": 16, "validation_share": 0.2}


def job(folder, source, workers, experts, zero_stage):
    parallel = {"parallelism__expert_parallel_size": experts, "parallelism__zero_stage": zero_stage}
    return Group(folder, workers, spec_of(folder / "store", resources__num_workers=workers, data__options=source, **JOB | parallel))


@pytest.fixture(scope="module")
def one_rank(tmp_path_factory, source):
    return job(tmp_path_factory.mktemp("one"), source, 1, 1, 1).run()


@pytest.fixture(scope="module")
def dealt_out(tmp_path_factory, source):
    return job(tmp_path_factory.mktemp("two"), source, 2, 2, 2).run()


def artifact(group, name):
    return group.store.get(f"jobs/job/artifacts/{name}").decode()


@pytest.mark.slow
def test_ranks_that_share_experts_train_evaluate_and_sample_as_one(one_rank, dealt_out):
    found, expected = dealt_out.history(), one_rank.history()
    assert found.keys() == expected.keys() == set(range(1, 21))
    for step, (loss, lr, norm, ids) in expected.items():
        assert found[step] == (pytest.approx(loss, abs=1e-5), lr, pytest.approx(norm, abs=1e-4), ids)
    evaluations = list(zip(dealt_out.of("evaluated"), one_rank.of("evaluated"), strict=True))
    assert len(evaluations) == 2
    for own, other in evaluations:  # three batches: the second rank has one less, and computes along
        assert own["values"] == pytest.approx(other["values"], rel=1e-5)
        assert 1 < own["values"]["expert_imbalance"] <= 2  # two of four experts for each token
    assert artifact(dealt_out, "sample.txt") == artifact(one_rank, "sample.txt") != ""
    assert expected[1][0] - expected[20][0] > 0.5


@pytest.mark.slow
def test_a_job_goes_on_without_dealing_experts_out(dealt_out, one_rank, source):
    manifest_key = next(ref.key for ref in dealt_out.log.chain() if ref.step == 10)
    again = job(dealt_out.folder, source, 1, 1, 0).run([manifest_key])
    assert again.of("restored")[0]["step"] == 10
    found, expected = again.losses(), one_rank.losses()
    assert [found[step] for step in range(11, 21)] == pytest.approx([expected[step] for step in range(11, 21)], abs=1e-5)
