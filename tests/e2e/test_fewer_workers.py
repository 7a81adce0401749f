"""A job on a cluster of two nodes, one of which is lost for good: it goes on with fewer workers, and with all of them when a node comes."""

from __future__ import annotations

import pytest
from harness import TINY, Sandbox, slowed
from ray_nodes import RayNodes
from supervision_box import QUICK_HEALTH_CHECKS

from orchestrator.events import EventKind
from orchestrator.job import JobState

STEPS = 400
CPU = {"CPU": 1}


@pytest.fixture
def sandbox():
    box = Sandbox()
    yield box
    box.close()


@pytest.fixture
def cluster(sandbox):
    it = RayNodes(sandbox, CPU, QUICK_HEALTH_CHECKS)
    it.add(CPU)
    yield it
    sandbox.run("down")  # first: a control plane that looks for its cluster waits long
    it.close()


@pytest.mark.slow
def test_a_job_goes_on_with_one_worker_when_a_node_is_lost_and_with_both_when_another_comes(sandbox, cluster, tmp_path):
    settings = (
        *TINY, f"training.max_steps={STEPS}", "checkpoint.interval_steps=20", f"cluster.address={cluster.address}",
        "resources.max_workers_per_node=1",
    )  # fmt: skip
    calm = sandbox.submit(*settings, "scheduler.resize_interval_s=1")
    assert sandbox.wait_ended(calm).state is JobState.SUCCEEDED, sandbox.describe()

    both_again = tmp_path / "both-again"
    shrinks = ("resources.min_workers=1", "recovery.shrink_after_s=1", "recovery.grow_interval_s=1")
    job_id = sandbox.submit(*settings, *shrinks, *slowed(both_again, steps=25))
    sandbox.wait_until(lambda: (sandbox.job(job_id).progress.committed_step or 0) >= 20, "a commit")
    (second,) = cluster.workers()
    cluster.power_off(second)
    sandbox.wait_until(lambda: told(sandbox, job_id, EventKind.RESIZED), "fewer workers")
    sandbox.wait_until(lambda: len(told(sandbox, job_id, EventKind.ADMITTED)) == 2, "its place on the node that is left")
    code, shown = sandbox.run("list")
    assert code == 0 and " 1/2 " in shown, shown
    cluster.add(CPU)
    sandbox.wait_until(lambda: len(told(sandbox, job_id, EventKind.ADMITTED)) == 3, "its place on both nodes")
    both_again.touch()
    job = sandbox.wait_ended(job_id)
    assert job.state is JobState.SUCCEEDED, sandbox.describe()
    fewer, more = told(sandbox, job_id, EventKind.RESIZED)
    assert fewer.message == "1 of 2 workers, because nodes are missing"
    assert more.message == "all 2 workers have a place again: it saves and starts again with them"
    places = [event.message.count("1 on ") for event in told(sandbox, job_id, EventKind.ADMITTED)]
    assert places == [2, 1, 2] and job.run == 3
    (lost,) = [event.message for event in told(sandbox, job_id, EventKind.ENDED) if "is lost" in event.message]
    assert "back to the queue, goes on from step" in lost
    rows, expected = sandbox.history(job_id), sandbox.history(calm)
    assert [row["step"] for row in rows] == list(range(1, STEPS + 1))
    assert [row["ids_crc"] for row in rows] == [row["ids_crc"] for row in expected]  # the same samples
    assert max(abs(row["loss"] - other["loss"]) for row, other in zip(rows, expected, strict=True)) < 1e-5


def told(sandbox, job_id, kind):
    return [event for _, event in sandbox.client.events(job_id) if event.kind is kind]
