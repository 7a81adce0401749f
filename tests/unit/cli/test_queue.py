"""`queue`, `explain`, `priority` and `policy` on a home that has a cluster and jobs; no cluster is needed."""

from __future__ import annotations

import json
import time

import pytest

from orchestrator.cli import main
from orchestrator.control.client import CLUSTER, Client
from orchestrator.control.controller import Controller
from orchestrator.control.nodes.groups import ScriptedGroups, done
from orchestrator.control.nodes.provisioning import Provisioner, ScriptedAutoscaler
from orchestrator.control.records.store import JobStore
from orchestrator.control.scheduler import ClusterView
from orchestrator.control.scheduler.model import CPU_UNITS, Node
from orchestrator.paths import Home
from orchestrator.spec import DataSpec, JobSpec, ModelSpec, ResourcesSpec, SchedulingSpec, TrainingSpec, WorkloadSpec

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def jobs(home: Home) -> list[str]:
    """Of three equal jobs one holds the cluster, two wait for it."""
    client, store = Client(home), JobStore(home.jobs_db)
    view = ClusterView(nodes=(Node(id="n", cpu_units=2 * CPU_UNITS),))
    provisioner = Provisioner(home.node_types, ScriptedAutoscaler())
    controller, ids = Controller(store, home, ScriptedGroups(), lambda: done(view), provisioner), []
    for name in ("first", "second", "third"):
        spec = JobSpec(
            workload=WorkloadSpec(name=name, entrypoint="tiny:Tiny"), model=ModelSpec(name="m"), data=DataSpec(name="d"),
            training=TrainingSpec(max_steps=10, global_batch_size=8, micro_batch_size=2), resources=ResourcesSpec(num_workers=2),
            scheduling=SchedulingSpec(tenant="lab"),
        )  # fmt: skip
        ids.append(client.submit(spec, {}).id)
        controller.step(time.time())
    controller.step(time.time() + 2)
    return ids


def test_the_queue_with_reasons_positions_and_starts(jobs: list[str], capsys: Capture) -> None:
    assert main(["queue"]) == 0
    head, second, third, hint = capsys.readouterr().out.splitlines()
    assert head.split() == ["#", "JOB", "TENANT", "PRIORITY", "WORKERS", "WAITS", "STARTS", "WHY"]
    assert second.split()[:5] == ["1", jobs[1], "lab", "0", "2"] and f"held by {jobs[0]}" in second and "   in " in second
    assert third.split()[:2] == ["2", jobs[2]] and "explain JOB" in hint
    assert main(["queue", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [(row["job_id"], row["position"], row["reserved"]) for row in rows] == [(jobs[1], 1, False), (jobs[2], 2, False)]
    assert rows[1]["start_s"] > rows[0]["start_s"] > time.time()


def test_an_empty_queue(home: Home, capsys: Capture) -> None:
    assert main(["queue"]) == 0
    assert capsys.readouterr().out == f"no job waits in {home.root}\n"
    assert main(["queue", "--json"]) == 0 and json.loads(capsys.readouterr().out) == []


def test_why_a_job_waits_and_what_would_change_it(jobs: list[str], capsys: Capture) -> None:
    assert main(["explain", jobs[2]]) == 0
    said = capsys.readouterr().out
    assert f"{jobs[2]} needs 2 x 1 CPU; 0 CPUs are free, held by {jobs[0]}" in said
    assert "position      2" in said and f"held by       {jobs[0]}:" in said and "(predicted, if nobody else comes)" in said
    assert main(["explain", jobs[1], "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["position"], found["holders"], found["reserved"], found["with_workers"]) == (1, [jobs[0]], False, None)
    assert main(["explain", "first"]) == 0
    assert capsys.readouterr().out == f"{jobs[0]} does not wait: it is starting\n"
    assert main(["explain", "fourth"]) == 2
    assert "no job is named 'fourth'" in capsys.readouterr().err


def test_a_priority_is_changed(jobs: list[str], capsys: Capture) -> None:
    assert main(["priority", "third", "7"]) == 0
    assert capsys.readouterr().out.startswith(f"{jobs[2]} has priority 7\n")
    assert main(["priority", "third", "-3", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"id": jobs[2], "state": "queued", "priority": -3}
    assert main(["priority", "third", "high"]) == 2
    assert main(["priority", "third", "1001"]) == 2
    assert "allowed is a whole number from -1000 to 1000" in capsys.readouterr().err


def test_a_policy_is_shown_chosen_and_changed(home: Home, capsys: Capture) -> None:
    assert main(["policy"]) == 0
    assert capsys.readouterr().out.startswith("preemptive\n  tenants              -\n  levels               72000, 720000\n")
    assert main(["policy", "batch", "tenants.lab.quota=64", "scheduler.tenants.lab.weight=2"]) == 0
    assert "tenants              lab: weight 2, quota 64\n" in capsys.readouterr().out
    assert main(["policy", "max_wait_s=60", "tenants.new.weight=3", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["name"], found["settings"]["max_wait_s"]) == ("batch", 60)
    assert {name: tenant["weight"] for name, tenant in found["settings"]["tenants"].items()} == {"lab": 2, "new": 3}
    assert Client(home).policy().policy.tenants["lab"].quota == 64


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["bach"], "Did you mean 'batch'?"),
        (["max_wait=3"], "Did you mean 'max_wait_s'?"),
        (["tenants.lab.quota=0"], "scheduler.tenants.lab.quota=0 is not possible: allowed is a whole number of at least 1"),
        (["fifo", "batch"], "names 2 policies: give one"),
        (["max_wait_s=1,2"], "names several values"),
    ],
)
def test_a_policy_that_cannot_be_is_refused_and_nothing_is_changed(home: Home, capsys: Capture, words: list[str], said: str) -> None:
    assert main(["policy", *words]) == 2
    assert said in capsys.readouterr().err
    assert Client(home).policy().name == "preemptive"


def test_a_policy_with_the_command_that_starts_a_control_plane_is_checked_and_a_dry_run_keeps_nothing(home: Home, capsys: Capture) -> None:
    assert main(["train", "--dry-run", "scheduler=batch", "scheduler.max_wait_s=60"]) == 0
    assert not home.jobs_db.exists()
    assert main(["submit", "scheduler=bach"]) == 2
    assert "scheduler=bach is not possible: allowed is batch, fifo, preemptive. Did you mean 'batch'?" in capsys.readouterr().err


def test_a_home_without_a_cluster_explains_that(home: Home, capsys: Capture, jobs: list[str]) -> None:
    JobStore(home.jobs_db).set_meta(CLUSTER, {"nodes": []})
    assert main(["explain", jobs[1]]) == 0
    assert "no node of the cluster is known yet" in capsys.readouterr().out
