"""Ranks that stop moving without dying: found, named, and the job goes on as if nothing had been."""

from __future__ import annotations

import json
import os
import signal

import pytest
from harness import TINY, slowed

from orchestrator.events import EventKind
from orchestrator.job import JobState
from orchestrator.paths import JobKeys
from orchestrator.supervision.accounting import Bucket

HANG_TIMEOUT_S = 15
SETTINGS = (
    *TINY, "training.max_steps=400", "training.log_interval_steps=1", f"recovery.hang_timeout_s={HANG_TIMEOUT_S}",
    "checkpoint.interval_steps=50",
)  # fmt: skip


@pytest.mark.slow
def test_a_stopped_rank_and_one_that_keeps_its_lock_are_named_and_the_curve_is_the_calm_one(sandbox, tmp_path):
    order, both_found = tmp_path / "hold", tmp_path / "both-found"
    settings = (*SETTINGS, f"+workload.options.hold_gil={order}")
    calm = sandbox.submit(*settings)
    assert sandbox.wait_ended(calm).state is JobState.SUCCEEDED

    job_id = sandbox.submit(*settings, *slowed(both_found, steps=60))
    sandbox.wait_step(job_id, 30)
    ranks = sorted(sandbox.ranks(), key=lambda process: process.pid)
    os.kill(ranks[1].pid, signal.SIGSTOP)
    sandbox.wait_until(lambda: len(hangs(sandbox, job_id)) == 1 and sandbox.job(job_id).state is JobState.RUNNING, "the first hang")
    sandbox.wait_step(job_id, 60)  # of its first steps after a restart nobody knows how long they may take
    order.touch()
    sandbox.wait_until(lambda: len(hangs(sandbox, job_id)) == 2, "the second hang")
    both_found.touch()
    taken = next(tmp_path.glob("hold.*"))
    job = sandbox.wait_ended(job_id)

    assert (job.state, job.progress.restarts) == (JobState.SUCCEEDED, 2)
    seconds = sandbox.ledger(job_id).seconds
    assert seconds[Bucket.HANG] > 2 * 2 * 0.75 * HANG_TIMEOUT_S, "both ranks stood still for 80 % of it, twice"
    assert seconds[Bucket.DETECTION] == 0
    assert sandbox.ledger(calm).seconds[Bucket.HANG] == 0
    assert sandbox.history(job_id) == sandbox.history(calm)
    assert sandbox.fingerprint(job_id) == sandbox.fingerprint(calm)
    stopped, holding = hangs(sandbox, job_id)
    assert "rank 1 is stopped by a signal in" in stopped.message and "; rank 0 waits in " in stopped.message
    culprit = int(taken.suffix[1:])
    assert holding.message.startswith(f"rank {culprit} ") and "tiny_workload.py" in holding.message
    incident = json.loads(sandbox.store(job_id).get(JobKeys(job_id).artifact("incident-00000002.json")))
    assert incident["culprit"] == culprit and "hold_gil" in incident["ranks"][culprit]["stack"]
    assert {rank["phase"] for rank in incident["ranks"]} <= {"data", "forward", "backward", "optimizer", "collective"}


def hangs(sandbox, job_id):
    return [event for _, event in sandbox.client.events(job_id) if event.kind is EventKind.HANG]
