"""A job on two raylets, one of which is lost with all that was on it before its state reached the store."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest
from harness import kill
from patience import wait_until
from supervision_box import Box, calm_history, double_spec

from orchestrator.checkpoints.slab import read_staged, slabs_of
from orchestrator.job import EndReason
from orchestrator.spec import RecoverySpec

MEMORY = Path("/dev/shm")


@pytest.fixture(scope="module")
def box():
    it = Box()
    yield it
    it.close()


def test_the_peer_of_a_lost_node_stores_what_it_had_staged_and_the_job_goes_on_from_there(box):
    """From step 15 on the uploader of node 1 stands still: nothing of it is stored. Its rank stops at step 40 for want of a slab."""
    import ray

    head = ray.nodes()[0]["NodeID"]
    second, gate = box.add_node(), box.root / "go-on"
    faults = [{"rank": rank, "step": 15, "how": "wait", "until": str(gate), "epochs": 1} for rank in (0, 1)]
    faults.append({"rank": 0, "step": 35, "how": "hold", "epochs": 1})
    recovery = RecoverySpec(backoff_s=0.05, hang_timeout_s=0)
    job = box.start(double_spec(box.url, faults=faults, max_steps=50, recovery=recovery), nodes=[head, second.id])
    wait_until(lambda: job.status()["progress"]["committed_step"] == 10, f"the commit of step 10: {job.status()}")
    second.uploader().suspend()
    gate.touch()
    # of steps that pile up only the newest is copied
    wait_until(lambda: 30 in _steps(f"orchestrator-{job.id}-0-of-1"), f"a copy of step 30: {job.status()}")
    assert job.status()["progress"]["committed_step"] == 10
    victims = [*second.processes(), psutil.Process(job.ranks(bundle=1)[1])]
    for process in victims:
        kill(process)
    for left in MEMORY.glob(f"orchestrator-{job.id}-1-*"):
        left.unlink()  # it was the memory of the lost node
    wait_until(lambda: job.status()["progress"]["committed_step"] == 30, f"the commit of step 30: {job.status()}")
    lost = job.wait_ended()  # when Ray knows that the node is gone, and not after a time that a node may take
    assert lost.end_reason is EndReason.PREEMPTED
    assert lost.message == f"node {second.id[:8]} is lost; back to the queue, goes on from step 30"
    assert job.events().count("agent_lost") + job.events().count("rank_lost") == 1
    assert "warning" not in job.events()
    job.release()
    wait_until(lambda: not list(MEMORY.glob(f"orchestrator-{job.id}-*")), "the removal of clocks and slabs")

    again = box.start(job.spec, job.id, run=2, nodes=[head, head])  # as the controller does when a place is lost
    assert again.wait_ended().end_reason is EndReason.COMPLETED
    restored = [line for line in (again.log(epoch, 1) for epoch in range(2, 9)) if line]
    assert restored[-1].endswith("begins at 30\n"), restored
    assert again.history() == calm_history(50)
    again.release()
    wait_until(lambda: not list(MEMORY.glob(f"orchestrator-{job.id}-*")), "the removal of clocks and slabs")


def _steps(stem):
    found = set()
    for path in slabs_of(MEMORY, stem):
        try:
            found.add(read_staged(path).step)
        except FileNotFoundError:
            continue
    return found
