"""A bit flips in one rank's copy of the weights: found, the rank named, nothing of it saved, and the curve is the calm one."""

from __future__ import annotations

import pytest
from harness import TINY

from orchestrator.events import EventKind
from orchestrator.job import EndReason, JobState

EVERY = 7
SETTINGS = (
    *TINY, "training.max_steps=60", "training.log_interval_steps=1", "checkpoint.interval_steps=10", "resources.num_workers=3",
    "parallelism.zero_stage=0", f"guard.replica_check_steps={EVERY}",
)  # fmt: skip


@pytest.mark.slow
def test_a_bit_that_flips_on_one_rank_costs_a_restart_and_no_bit_of_the_result(sandbox):
    calm, struck = (sandbox.submit(*SETTINGS, *chaos) for chaos in ((), ("chaos.seed=5", "chaos.flip_bit=1", "chaos.first_step=20")))
    job = sandbox.wait_ended(struck)
    assert (job.state, job.progress.restarts) == (JobState.SUCCEEDED, 1), sandbox.describe()
    told = {event.kind: event for _, event in sandbox.client.events(struck)}
    flipped, lost = told[EventKind.CHAOS].fields, told[EventKind.RANK_LOST]
    assert (lost.fields["reason"], lost.fields["rank"]) == (EndReason.DRIFT.name, flipped["rank"])
    found_at = int(lost.message.split("at step ")[1].split()[0])
    assert 0 <= found_at - flipped["step"] < EVERY, "compared when it is due, and before each save"
    assert sandbox.wait_ended(calm).state is JobState.SUCCEEDED
    assert sandbox.history(struck) == sandbox.history(calm)
    assert sandbox.fingerprint(struck) == sandbox.fingerprint(calm)
