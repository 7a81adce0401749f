"""A real local cluster: started, found, stopped, killed, cleaned up."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import psutil
import pytest
from patience import LIMIT_S

from orchestrator.control.client import CLUSTER
from orchestrator.control.keeper import ClusterFile
from orchestrator.control.local import controller_alive, ensure_cluster, stop_cluster
from orchestrator.control.lock import holder
from orchestrator.control.processes import is_same, marked, start_time, wait_until
from orchestrator.control.records.store import JobStore
from orchestrator.errors import ClusterError
from orchestrator.paths import Home
from orchestrator.spec import ClusterSpec

LONG = ClusterSpec(num_cpus=2, idle_timeout_s=600)


@pytest.fixture
def home():
    root = Path(tempfile.mkdtemp(prefix="orc-test-"))
    home = Home(root / "home")
    yield home
    stop_cluster(home)
    left = [process.cmdline() for process in marked(str(home.root))]
    shutil.rmtree(root)
    assert not left


def cluster_processes(home: Home) -> list[psutil.Process]:
    file = ClusterFile.read(home)
    assert file is not None
    return [*marked(str(home.root)), psutil.Process(file.keeper_pid)]


def quiet(_text: str) -> None:
    return None


def test_one_cluster_is_started_found_again_and_leaves_nothing(home):
    said: list[str] = []
    found = []
    threads = [threading.Thread(target=lambda: found.append(ensure_cluster(home, LONG, said.append))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LIMIT_S)
    assert sorted(cluster.started for cluster in found) == [False, True], "two commands at once start one cluster"
    assert len({cluster.address for cluster in found}) == 1
    assert any("starting a local Ray cluster" in text for text in said)
    assert not ensure_cluster(home, LONG, said.append).started
    assert controller_alive(home)
    assert home.token.stat().st_mode & 0o777 == 0o600
    nodes = JobStore(home.jobs_db).meta(CLUSTER)["nodes"]
    assert [node["cpu_units"] for node in nodes] == [20_000]

    second = subprocess.run(
        [sys.executable, "-m", "orchestrator.control.serve", "--home", str(home.root), "--address", found[0].address],
        capture_output=True, text=True, timeout=LIMIT_S, check=False,
    )  # fmt: skip
    assert second.returncode == 3
    assert f"another controller serves {home.root} (pid {holder(home).pid})" in second.stderr

    with pytest.raises(ClusterError, match="serves the cluster at"):
        listener = found[0].address.replace("127.0.0.1", "localhost")
        ensure_cluster(home, ClusterSpec(address=listener), quiet)

    first = holder(home)
    os.kill(first.pid, 9)
    assert wait_until(lambda: controller_alive(home) and holder(home).pid != first.pid, LIMIT_S), "the keeper brings the controller back"

    file = ClusterFile.read(home)
    processes = cluster_processes(home)
    assert stop_cluster(home)
    assert not [process for process in processes if process.is_running() and process.status() != psutil.STATUS_ZOMBIE]
    assert not Path(file.temp_dir).exists()
    assert not home.cluster_file.exists()
    assert not stop_cluster(home)


@pytest.mark.parametrize("what", ["keeper", "everything"])
def test_the_remains_of_a_killed_cluster_are_removed_and_a_new_one_starts(home, what):
    ensure_cluster(home, LONG, quiet)
    old = ClusterFile.read(home)
    victims = cluster_processes(home)
    lives = {process.pid: start_time(process.pid) for process in victims}
    for process in victims if what == "everything" else [psutil.Process(old.keeper_pid)]:
        process.kill()
    psutil.wait_procs([psutil.Process(old.keeper_pid)] if psutil.pid_exists(old.keeper_pid) else [], timeout=LIMIT_S)
    said: list[str] = []
    assert ensure_cluster(home, LONG, said.append).started
    assert "removing what a killed cluster left behind" in said
    assert not [pid for pid, created in lives.items() if created and is_same(pid, created)]
    assert not Path(old.temp_dir).exists()
    assert ClusterFile.read(home).id != old.id


def test_an_idle_cluster_stops_by_itself(home):
    ensure_cluster(home, ClusterSpec(num_cpus=1, idle_timeout_s=5.0), quiet)
    file = ClusterFile.read(home)
    assert wait_until(lambda: not home.cluster_file.exists() and not is_same(file.keeper_pid, file.keeper_created), LIMIT_S)
    assert not marked(str(home.root))
    assert not Path(file.temp_dir).exists()


def test_a_cluster_that_can_not_start_says_why(home, monkeypatch):
    monkeypatch.setenv("RAY_health_check_period_ms", "soon")  # Ray's servers refuse it
    with pytest.raises(ClusterError, match=r"(?s)did not come up.*ray\.log"):
        ensure_cluster(home, LONG, quiet)
    assert not home.cluster_file.exists()


@pytest.mark.parametrize("address, message", [("127.0.0.1:1", "no Ray head answers there"), ("nowhere", "is no address")])
def test_an_address_where_nothing_listens_is_refused_at_once(home, address, message):
    with pytest.raises(ClusterError, match=message):
        ensure_cluster(home, ClusterSpec(address=address), quiet)
