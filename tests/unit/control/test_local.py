from __future__ import annotations

import os

import pytest

from orchestrator.control.keeper import ClusterFile
from orchestrator.control.local import cluster_here
from orchestrator.control.lock import ControllerLock
from orchestrator.control.processes import start_time
from orchestrator.paths import Home
from orchestrator.spec import ClusterSpec

GONE, LOCAL = ClusterSpec(address="10.0.0.1:6379", num_cpus=4), ClusterSpec(num_cpus=4)


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    return Home(tmp_path)


def test_a_job_goes_on_with_the_cluster_that_is_controlled(home, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.3:6379")
    ControllerLock(home).publish("10.0.0.2:6379", ready=True)  # by this process, which lives
    assert cluster_here(home, GONE) == cluster_here(home, LOCAL) == ClusterSpec(address="10.0.0.2:6379", num_cpus=4)
    mine = {"keeper_pid": os.getpid(), "keeper_created": start_time(os.getpid()), "idle_timeout_s": 30.0}
    ClusterFile(id="a", address="10.0.0.2:6379", temp_dir="none", **mine).write(home)
    assert cluster_here(home, GONE) == LOCAL


def test_without_a_controller_with_the_one_that_ray_is_told_of_or_its_own(home, monkeypatch):
    assert (cluster_here(home, GONE), cluster_here(home, LOCAL)) == (GONE, LOCAL)
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.3:6379")
    assert cluster_here(home, GONE).address == "10.0.0.3:6379"
    assert cluster_here(home, LOCAL) == LOCAL, "a local cluster of its own"
