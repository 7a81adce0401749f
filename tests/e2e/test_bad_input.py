"""What is wrong is refused at once, with exit code 2 and words that help; nothing is queued."""

from __future__ import annotations

import pytest
from harness import TINY, Sandbox


@pytest.fixture(scope="module")
def sandbox():
    box = Sandbox()
    yield box
    box.close()


@pytest.mark.parametrize(
    "arguments, words",
    [
        (("trian",), ("trian", "train")),
        (("train", "workload=gtp"), ("gtp", "gpt")),
        (("train", "training.max_step=5"), ("max_step", "max_steps")),
        (("train", "+training.max_step=5"), ("max_step", "max_steps")),
        (("train", "training.max_steps=four"), ("training.max_steps", "four")),
        (("train", "training.micro_batch_size=7"), ("7", "global_batch_size")),
        (("train", "resources.num_workers=1001"), ("1001",)),
        (("train", "parallelism.zero_stage=4"), ("zero_stage", "4")),
        (("train", "workload.entrypoint=no_such_module:X"), ("no_such_module",)),
        (("train", "storage.url=s3://bucket", "storage.endpoint_url=http://127.0.0.1:9", "storage.max_attempts=1"), ("127.0.0.1:9",)),
        (("train", "storage.url=file:///proc/nowhere"), ("/proc/nowhere",)),
        (("status", "no-such-job"), ("no-such-job",)),
        (("resume", "no-such-job"), ("no-such-job",)),
    ],
)
def test_refused_with_exit_code_2(sandbox, arguments, words):
    code, output = sandbox.run(*arguments)
    assert code == 2, output
    assert "Traceback" not in output
    for word in words:
        assert word in output
    assert sandbox.jobs() == []


def test_dry_run_shows_spec_and_deepspeed_config_and_starts_nothing(sandbox):
    code, output = sandbox.run("train", "--dry-run", *TINY)
    assert code == 0, output
    assert "train_batch_size" in output and "zero_optimization" in output
    assert not sandbox.processes()
