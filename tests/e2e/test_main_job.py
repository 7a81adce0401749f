"""The whole way of a job, through the command line, on a real local cluster."""

from __future__ import annotations

import math
import signal

import numpy as np
import pytest
from harness import ENDLESS, TINY, Sandbox, interrupt, slowed
from patience import LIMIT_S

from orchestrator.job import EndReason, JobState


@pytest.fixture(scope="module")
def sandbox():
    box = Sandbox()
    yield box
    box.close()


@pytest.fixture(scope="module")
def calm(sandbox):
    """A calm run of the tiny workload on two workers."""
    job_id = sandbox.submit(*TINY)
    assert sandbox.wait_ended(job_id).state is JobState.SUCCEEDED, sandbox.describe()
    return job_id


def test_a_job_runs_to_its_end_and_learns(sandbox, calm):
    job = sandbox.job(calm)
    history = sandbox.history(calm)
    assert [row["step"] for row in history] == list(range(1, 121))
    assert job.progress.committed_step == 120
    assert job.result is not None and job.result.end_reason is EndReason.COMPLETED
    assert np.mean([row["loss"] for row in history[-10:]]) < 0.7 * history[0]["loss"]


def test_the_same_job_again_is_bit_identical(sandbox, calm):
    again = sandbox.submit(*TINY)
    assert sandbox.wait_ended(again).state is JobState.SUCCEEDED
    assert sandbox.history(again) == sandbox.history(calm)
    assert sandbox.fingerprint(again) == sandbox.fingerprint(calm)


@pytest.mark.parametrize("workers", [1, 3])
def test_other_world_sizes_see_the_same_samples_and_losses(sandbox, calm, workers):
    other = sandbox.submit(*TINY, f"resources.num_workers={workers}")
    assert sandbox.wait_ended(other).state is JobState.SUCCEEDED
    ours, theirs = sandbox.history(other), sandbox.history(calm)
    assert [row["ids_crc"] for row in ours] == [row["ids_crc"] for row in theirs]
    for mine, reference in zip(ours, theirs, strict=True):
        assert math.isclose(mine["loss"], reference["loss"], rel_tol=2e-3, abs_tol=1e-4), (mine, reference)


@pytest.mark.parametrize(
    "change", ["resources.num_workers=1", "resources.num_workers=3", "parallelism.zero_stage=2", "parallelism.zero_stage=3"]
)
def test_a_checkpoint_continues_in_another_layout(sandbox, change):
    job_id = sandbox.submit(*TINY, "training.max_steps=40")
    assert sandbox.wait_ended(job_id).state is JobState.SUCCEEDED
    before = sandbox.history(job_id)
    code, output = sandbox.run("resume", job_id, "training.max_steps=60", change)
    assert code == 0, output
    after = sandbox.history(job_id)
    assert after[:40] == before
    assert [row["step"] for row in after] == list(range(1, 61))
    assert sandbox.job(job_id).progress.committed_step == 60
    assert after[40]["loss"] < 1.5 * before[-1]["loss"] + 0.1


def test_a_users_bug_costs_one_retry_and_shows_its_traceback(sandbox):
    job_id = sandbox.submit(*TINY, "+workload.options.bug=true")
    job = sandbox.wait_ended(job_id)
    assert job.state is JobState.FAILED
    assert job.result.end_reason is EndReason.USER_ERROR
    assert "the tiny workload was told to fail" in job.result.message
    assert job.progress.restarts <= 1


def test_killing_the_command_does_not_stop_the_job(sandbox, calm):
    known = {job.id for job in sandbox.jobs()}
    command = sandbox.start("train", *TINY)
    job_id = sandbox.wait_until(lambda: next((j.id for j in sandbox.jobs() if j.id not in known), None), "the job of the command")
    command.send_signal(signal.SIGKILL)
    command.communicate()
    code, output = sandbox.run("logs", "-f", job_id)
    assert code == 0, output
    assert sandbox.wait_ended(job_id).state is JobState.SUCCEEDED
    assert sandbox.history(job_id) == sandbox.history(calm)


def test_jobs_wait_for_each_other_with_a_reason(sandbox):
    big = ("resources.cpus_per_worker=1",)
    first = sandbox.submit(*TINY, *big, ENDLESS)
    second = sandbox.submit(*TINY, *big)
    reason = sandbox.wait_until(lambda: sandbox.job(second).reason, "a reason")
    assert first in reason or "CPU" in reason
    code, output = sandbox.run("cancel", first, "--now")
    assert code == 0, output
    assert sandbox.wait_ended(first).state is JobState.CANCELLED
    assert sandbox.wait_ended(second).state is JobState.SUCCEEDED


def test_more_workers_than_the_cluster_has_is_refused(sandbox, calm):
    code, output = sandbox.run("submit", *TINY, "resources.cpus_per_worker=1000")
    assert code == 2, output
    assert "1000" in output or "2000" in output


def test_ctrl_c_in_train_on_a_shared_cluster_detaches(sandbox, calm, tmp_path):
    known, is_stopped = {job.id for job in sandbox.jobs()}, tmp_path / "is-stopped"
    command = sandbox.start("train", *TINY, *slowed(is_stopped))
    job_id = sandbox.wait_until(lambda: next((j.id for j in sandbox.jobs() if j.id not in known), None), "the job of the command")
    sandbox.wait_step(job_id, 1)
    interrupt(command)
    output, _ = command.communicate(timeout=LIMIT_S)
    assert "logs -f" in output and job_id in output
    assert not sandbox.job(job_id).state.terminal
    sandbox.client.request_stop(job_id, "drain")
    job = sandbox.wait_ended(job_id)
    assert job.state is JobState.CANCELLED and job.progress.committed_step == job.progress.step
    is_stopped.touch()
    code, output = sandbox.run("resume", job_id)
    assert code == 0, output
    assert [row["step"] for row in sandbox.history(job_id)] == list(range(1, 121))
