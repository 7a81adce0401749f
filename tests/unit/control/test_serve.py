"""How a controller's process ends."""

from __future__ import annotations

import dataclasses
import time

import pytest

from orchestrator.control import serve
from orchestrator.control.client import Client
from orchestrator.control.forward_clock import ForwardClock
from orchestrator.control.lock import ControllerLock
from orchestrator.control.pulse import Pulse
from orchestrator.control.records.lease import ControllerLease
from orchestrator.control.records.store import JobStore
from orchestrator.paths import Home
from orchestrator.spec import DataSpec, JobSpec, ModelSpec, TrainingSpec, WorkloadSpec

SPEC = JobSpec(
    workload=WorkloadSpec(name="tiny", entrypoint="tiny:Tiny"), model=ModelSpec(name="m"), data=DataSpec(name="d"),
    training=TrainingSpec(max_steps=10, global_batch_size=8, micro_batch_size=2),
)  # fmt: skip


@pytest.fixture
def service(tmp_path, monkeypatch):
    """Without a Ray that could answer."""
    monkeypatch.setattr(serve.signal, "signal", lambda number, act: None)
    home = Home(tmp_path)
    lock, lease = ControllerLock(home), ControllerLease(JobStore(home.jobs_db).engine)
    assert lock.acquire()
    lease.acquire()
    return serve.Service(home, "127.0.0.1:1", None, lock, lease, Pulse())


def test_an_error_that_nobody_expects_ends_the_process(tmp_path, monkeypatch, capfd):
    def fails(*arguments):
        raise RuntimeError("nobody expects this")

    monkeypatch.setattr(serve, "_serve", fails)
    assert serve.main(["--home", str(tmp_path), "--address", "127.0.0.1:1"]) == serve.EXIT_FAULT
    assert "nobody expects this" in capfd.readouterr().err


def test_time_goes_on_though_the_machines_clock_is_set_back_and_follows_it_again_afterwards():
    wall, steady = [1000.0], [5.0]
    clock = ForwardClock(lambda: wall[0], lambda: steady[0])
    seen = [clock()]
    for step in (1.0, -3600.0, 0.0, 7300.0):
        for _ in range(2):
            steady[0] += 10
            wall[0] += 10 + step
            seen.append(clock())
            step = 0.0
    assert seen == [1000, 1011, 1021, 1026, 1031, 1036, 1041, 4771, 4781]


def test_one_that_has_never_seen_the_cluster_leaves_though_jobs_wait(service, monkeypatch):
    Client(service._home).submit(dataclasses.replace(SPEC), {})
    monkeypatch.setattr(serve, "BLIND_LIMIT_S", 0.3)
    began = time.monotonic()
    assert service.run() == serve.EXIT_CLUSTER and time.monotonic() - began >= 0.3
