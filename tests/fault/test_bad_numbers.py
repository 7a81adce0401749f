"""A sample that makes the loss infinite: named and refused, or passed over with the rest of the data in its order."""

from __future__ import annotations

import pytest
from harness import TINY

from orchestrator.events import EventKind
from orchestrator.job import EndReason, JobState

SETTINGS = (
    *TINY, "training.max_steps=40", "training.log_interval_steps=1", "checkpoint.interval_steps=10", "guard.replica_check_steps=4",
)  # fmt: skip
BAD = "+workload.options.poison=4.5"
"""One sample of all has a coordinate beyond it."""


@pytest.fixture(scope="module")
def calm(sandbox):
    job_id = sandbox.submit(*SETTINGS)
    assert sandbox.wait_ended(job_id).state is JobState.SUCCEEDED
    return sandbox.history(job_id)


@pytest.mark.slow
def test_the_same_bad_number_twice_ends_the_job_with_its_step_and_nothing_bad_is_saved(sandbox, calm):
    job = sandbox.wait_ended(sandbox.submit(*SETTINGS, BAD))
    assert (job.state, job.result.end_reason, job.progress.restarts) == (JobState.FAILED, EndReason.NAN, 1)
    step = int(job.result.message.split("at step ")[1].split()[0])
    assert "the loss is not finite" in job.result.message and 1 < step <= 40
    assert job.progress.committed_step == (step - 1) // 10 * 10 or None
    assert sandbox.history(job.id)[: step - 1] == calm[: step - 1]


@pytest.mark.slow
def test_its_samples_are_passed_over_and_the_others_follow_in_their_order(sandbox, calm):
    job = sandbox.wait_ended(sandbox.submit(*SETTINGS, BAD, "guard.on_bad_numbers=skip"))
    assert (job.state, job.progress.restarts) == (JobState.SUCCEEDED, 1), sandbox.describe()
    told = next(event for _, event in sandbox.client.events(job.id) if event.kind is EventKind.RESTARTED)
    first, end = told.fields["skipped"]
    assert end - first == 24 and "without the samples" in told.message
    found, before = sandbox.history(job.id), first // 24
    assert found[:before] == calm[:before]
    ids = [row["ids_crc"] for row in found]
    assert ids[before:] == [row["ids_crc"] for row in calm][before + 1 :] + ids[-1:]


@pytest.mark.slow
def test_where_every_rank_holds_all_state_copies_are_equal_and_a_bad_number_may_end_the_job_at_once(sandbox):
    job = sandbox.wait_ended(sandbox.submit(*SETTINGS, BAD, "guard.on_bad_numbers=stop", "parallelism.zero_stage=0"))
    assert (job.result.end_reason, job.progress.restarts) == (EndReason.NAN, 0)
    assert job.progress.step > 4, "the copies were compared"
