"""A cluster that begins without workers, with Ray's real autoscaler and real raylets of 8 pretended GPUs each."""

from __future__ import annotations

import pytest
from harness import Sandbox
from scaling_trials import scaling_cluster, trial


@pytest.fixture
def sandbox():
    box = Sandbox()
    yield box
    box.close()


@pytest.fixture
def cluster(sandbox):
    it = scaling_cluster(sandbox, idle_s=15.0)
    yield it
    sandbox.run("down")  # first: a control plane that looks for its cluster waits long
    it.close()


@pytest.mark.slow
def test_nodes_come_for_jobs_that_wait_and_leave_when_none_does_and_no_step_is_lost(sandbox, cluster):
    seen = trial(sandbox, cluster, drained_after=10, notice_s=40.0)
    assert "waits for nodes: 8 more GPUs asked of the autoscaler" in seen["asked"]
    assert seen["gpus"] == 16, "both run at the same time"
    assert seen["states"] == ["succeeded", "succeeded"], sandbox.describe()
    assert (seen["preemptions"], seen["restarts"]) == ([0, 1], [0, 0])
    assert 0 <= seen["repeated"] <= 1, "at most the step in flight"
    assert seen["lost_s"] == 0
    assert min(map(sum, seen["nodes_s"])) > 1.0, "they waited for nodes"
    assert seen["equal"]
