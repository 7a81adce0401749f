"""`orchestrator nodes` on a home that remembers a cluster; no cluster is needed."""

from __future__ import annotations

import json
import time

import pytest

from orchestrator.cli import main
from orchestrator.control.client import CLUSTER
from orchestrator.control.records.store import JobStore
from orchestrator.control.scheduler import ClusterView, Standing
from orchestrator.control.scheduler.model import CPU_UNITS, Node
from orchestrator.events import Event, EventKind
from orchestrator.paths import Home

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def store(home: Home) -> JobStore:
    """Two of Ray's nodes on one machine, another that drains, and a hang on the first a moment ago, a fault on one that is gone."""
    store = JobStore(home.jobs_db)
    nodes = [Node(id=f"r{number}", host="left", cpu_units=4 * CPU_UNITS, gpus=2) for number in range(2)]
    nodes.append(Node(id="r3", host="right", cpu_units=8 * CPU_UNITS, draining=True))
    coming = {"host": "more gpu", "cpu_units": 4 * CPU_UNITS, "gpus": 2, "standing": Standing.COMING}
    nodes += [Node(id="~0", starting=True, **coming), Node(id="~1", **coming)]
    store.set_meta(CLUSTER, ClusterView(nodes=tuple(nodes)).to_dict())
    for node, kind in (("left", "HANG"), ("lost", "LOST")):
        fields = {"incident": kind, "node": node, "gpu": "GPU-7" if kind == "HANG" else ""}
        message = f"rank 3 of {node} failed\nand more"
        store.tell_waiting([], [Event(kind=EventKind.HANG, job_id="gpt-a", time_s=time.time(), message=message, fields=fields)])
    return store


def test_machines_with_their_scores_and_what_happened(store: JobStore, capsys: Capture) -> None:
    assert main(["nodes"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split() for line in lines[:5]] == [
        ["NODE", "STATE", "CPUS", "GPUS", "SCORE", "STANDING"],
        ["left", "alive", "8", "4", "0.50", "suspect"],
        ["lost", "gone", "0", "0", "0.30", "suspect"],
        ["more", "gpu", "1", "of", "2", "on", "the", "way", "8", "4", "0.00", "good"],
        ["right", "draining", "8", "0", "0.00", "good"],
    ]
    assert lines[5].startswith("  left  20") and lines[5].endswith("hang in gpt-a, counts 0.50: rank 3 of left failed")
    assert "forgive" in lines[-1]


def test_the_same_as_json(store: JobStore, capsys: Capture) -> None:
    assert main(["nodes", "--json"]) == 0
    left, lost, more, right = json.loads(capsys.readouterr().out)
    assert (left["score"], left["standing"], left["suspected_gpus"]) == (0.5, "suspect", {"GPU-7": 0.5})
    assert [incident["kind"] for incident in lost["incidents"]] == ["lost"]
    assert more["state"] == "1 of 2 on the way"
    assert (right["incidents"], right["state"]) == ([], "draining")


def test_a_machine_is_forgiven(store: JobStore, capsys: Capture) -> None:
    assert main(["nodes", "forgive", "left"]) == 0
    assert capsys.readouterr().out == "left: 1 incident forgiven\n"
    assert [incident.node for incident in store.incidents(0.0)] == ["lost"]
    assert main(["nodes", "forgive", "lefd"]) == 2
    assert "Known: left, lost, right" in capsys.readouterr().err


def test_a_flag_may_stand_before_the_machine(store: JobStore, capsys: Capture) -> None:
    assert main(["nodes", "forgive", "--json", "lost"]) == 0
    assert json.loads(capsys.readouterr().out) == {"node": "lost", "forgiven": 1}


def test_without_a_cluster_it_says_so(home: Home, capsys: Capture) -> None:
    assert main(["nodes"]) == 2
    assert "there is no cluster" in capsys.readouterr().err
    assert not home.root.exists()
