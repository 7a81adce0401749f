"""A cluster that begins without workers, with Ray's real autoscaler and real raylets of 8 pretended GPUs each."""

from __future__ import annotations

import pytest
from harness import TINY, Sandbox
from raylet_provider import ScalingCluster

from orchestrator.events import EventKind
from orchestrator.job import JobState
from orchestrator.supervision.accounting import Bucket

IDLE_S = 4.0
STEPS = 200


@pytest.fixture
def sandbox():
    box = Sandbox()
    yield box
    box.close()


@pytest.fixture
def cluster(sandbox):
    it = ScalingCluster(sandbox, {"CPU": 1, "GPU": 8}, max_nodes=2, idle_s=IDLE_S)
    yield it
    sandbox.run("down")  # first: a control plane that looks for its cluster waits long
    it.close()


@pytest.mark.slow
def test_nodes_come_for_jobs_that_wait_and_leave_when_none_does_and_no_step_is_lost(sandbox, cluster):
    settings = (
        *TINY, f"cluster.address={cluster.address}", "resources.gpus_per_worker=1", f"training.max_steps={STEPS}",
        "checkpoint.interval_steps=1000",
    )  # fmt: skip
    go_on = sandbox.root / "go-on"  # the first job, on the first node, waits in step 21 until the other has ended
    first = sandbox.submit(*settings, f"+workload.options.waits_for={go_on}", "recovery.hang_timeout_s=0")
    sandbox.wait_until(lambda: told(sandbox, first, EventKind.WAITING), "a reason")
    assert "waits for nodes: 8 more GPUs asked of the autoscaler" in [event.message for event in told(sandbox, first, EventKind.WAITING)]
    sandbox.wait_step(first, 10)
    second = sandbox.submit(*settings, "+workload.options.sleep_s=0.03")
    sandbox.wait_step(second, 10)
    assert len(cluster.workers()) == 2 and sandbox.job(first).state is JobState.RUNNING, "both run at the same time, on 16 GPUs"

    ((node, _),) = sandbox.job(second).placement
    cluster.drain(node, 20)
    sandbox.wait_until(lambda: sandbox.job(second).run == 2, "the way back to the queue")
    saved = sandbox.job(second).progress
    job = sandbox.wait_ended(second)
    assert job.state is JobState.SUCCEEDED, sandbox.describe()
    assert (job.progress.preemptions, job.progress.restarts) == (1, 0)
    restored = next(event.fields["step"] for event in told(sandbox, second, EventKind.RESTORED))
    assert restored == saved.committed_step >= saved.step - 1, "at most the step in flight"
    go_on.touch()
    assert sandbox.wait_ended(first).state is JobState.SUCCEEDED, sandbox.describe()
    assert (sandbox.job(first).progress.preemptions, sandbox.job(first).progress.restarts) == (0, 0)
    assert sandbox.ledger(first).seconds[Bucket.LOST] == 0
    assert all(sandbox.ledger(job_id).seconds[Bucket.PROVISION] > 1.0 for job_id in (first, second)), "they waited for nodes"
    assert sandbox.history(second) == sandbox.history(first)
    assert sandbox.fingerprint(second) == sandbox.fingerprint(first)
    sandbox.wait_until(lambda: not cluster.workers(), "the end of all idle nodes")


def told(sandbox, job_id, kind):
    return [event for _, event in sandbox.client.events(job_id) if event.kind is kind]
