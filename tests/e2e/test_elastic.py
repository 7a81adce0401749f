"""An elastic job on two nodes with two pretended GPUs each: it shrinks for one that needs a GPU of its node, and grows back."""

from __future__ import annotations

import pytest
from harness import TINY, Sandbox, slowed
from ray_nodes import RayNodes
from supervision_box import TESTS

from orchestrator.events import EventKind
from orchestrator.job import JobState

STEPS = 400
NODE = {"CPU": 2, "GPU": 2}
POLICY = ("scheduler=preemptive", "scheduler.min_run_s=0", "scheduler.gain_factor=0", "scheduler.resize_interval_s=1")
THERE = "+resources.node_labels.host=host1"


@pytest.fixture
def sandbox():
    box = Sandbox()
    yield box
    box.close()


@pytest.fixture
def cluster(sandbox):
    it = RayNodes(sandbox, NODE, {"PYTHONPATH": f"{TESTS / 'pretended_gpus'}:{TESTS}"})
    it.add(NODE)
    yield it
    sandbox.run("down")  # first: a control plane that looks for its cluster waits long
    it.close()


@pytest.mark.slow
def test_a_job_gives_a_worker_to_one_that_needs_its_node_and_has_it_back_afterwards(sandbox, cluster, tmp_path):
    (node,) = cluster.workers()
    settings = (*TINY, f"cluster.address={cluster.address}", "resources.gpus_per_worker=1", THERE, "checkpoint.interval_steps=50")
    calm = sandbox.submit(*settings, f"training.max_steps={STEPS}", *POLICY)
    assert sandbox.wait_ended(calm).state is JobState.SUCCEEDED, sandbox.describe()

    may_go_on = tmp_path / "may-go-on"
    elastic = sandbox.submit(
        *settings, f"training.max_steps={STEPS}", *slowed(may_go_on, steps=5), "resources.min_workers=1", "recovery.grow_interval_s=1",
    )  # fmt: skip
    sandbox.wait_step(elastic, 5)
    other = sandbox.submit(*settings, "training.max_steps=20", "resources.num_workers=1", "scheduling.priority=1")
    assert sandbox.wait_ended(other).state is JobState.SUCCEEDED, sandbox.describe()
    sandbox.wait_until(lambda: len(told(sandbox, elastic, EventKind.ADMITTED)) == 3, "the third place")
    may_go_on.touch()
    job = sandbox.wait_ended(elastic)
    assert job.state is JobState.SUCCEEDED, sandbox.describe()

    places = [event.message for name in (calm, elastic, other) for event in told(sandbox, name, EventKind.ADMITTED)]
    assert places == [f"workers: {count} on {node[:8]}" for count in (2, 2, 1, 2, 1)]
    assert (job.run, job.progress.restarts, job.progress.preemptions) == (3, 0, 0)
    rows, expected = sandbox.history(elastic), sandbox.history(calm)
    assert [row["ids_crc"] for row in rows] == [row["ids_crc"] for row in expected]  # the same samples, each once
    assert max(abs(row["loss"] - other["loss"]) for row, other in zip(rows, expected, strict=True)) < 1e-5

    code, shown = sandbox.run("submit", *TINY, f"cluster.address={cluster.address}", "+resources.node_labels.host=hots1")
    assert code == 2 and "resources.node_labels.host=hots1 is not possible: allowed is head, host1. Did you mean 'host1'?" in shown


def told(sandbox, job_id, kind):
    return [event for _, event in sandbox.client.events(job_id) if event.kind is kind]
