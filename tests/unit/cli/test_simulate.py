"""`orchestrator simulate`: its table, its JSON, its pictures, and what it refuses."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
from patience import LIMIT_S

from orchestrator.cli import main
from orchestrator.control.client import CLUSTER
from orchestrator.control.records.store import JobStore
from orchestrator.control.scheduler.model import CPU_UNITS, ClusterView, Node
from orchestrator.job import Job, JobState
from orchestrator.paths import Home
from orchestrator.spec import DataSpec, JobSpec, ModelSpec, ResourcesSpec, TrainingSpec, WorkloadSpec

Capture = pytest.CaptureFixture[str]

HEADER = "job_id,submit_s,num_gpus,duration_s,user,vc,status"
LINES = ("a,100,8,1000,ann,lab,", "b,110,16,500,ben,lab,", "c,120,1,20,cid,field,", "d,130,8,10,,,")
"""On two nodes of 8: a runs from 0 to 1000, b must wait for it, c and d could run beside it."""
PROMISED = (
    "avg_jct_s", "p50_jct_s", "p99_jct_s", "avg_wait_s", "max_wait_s", "max_total_wait_s", "preemptions", "max_preemptions_of_a_job",
    "utilization", "makespan_s", "worst_tenant_slowdown", "jain", "big_job_avg_wait_s",
)  # fmt: skip
SPEC = JobSpec(
    workload=WorkloadSpec(name="tiny", entrypoint="tiny:Tiny"), model=ModelSpec(name="m"), data=DataSpec(name="d"),
    training=TrainingSpec(max_steps=10, global_batch_size=8, micro_batch_size=1), resources=ResourcesSpec(num_workers=4),
)  # fmt: skip


@pytest.fixture
def trace(tmp_path: Path) -> str:
    return written(tmp_path, *LINES)


def written(folder: Path, *lines: str) -> str:
    path = folder / "trace.csv"
    path.write_text("\n".join([HEADER, *lines, ""]))
    return str(path)


def told(capsys: Capture, *arguments: str) -> dict:
    """The last line that `simulate --json` prints."""
    assert main(["simulate", *arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def refusal(capsys: Capture, *arguments: str) -> str:
    assert main(["simulate", *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    return captured.err.removeprefix("orchestrator: ").rstrip("\n")


# what comes of it


def test_the_figures_as_json(trace: str, capsys: Capture) -> None:
    found = told(capsys, "cluster.nodes=2", trace, "cluster.cost_per_gpu_hour=3.6", "scheduler=fifo-strict")
    assert set(PROMISED) <= set(found) and all(isinstance(value, int | float) for value in found.values())
    waits = (0, 990, 1480, 1490 - 20)
    assert (found["max_wait_s"], found["max_total_wait_s"], found["big_job_avg_wait_s"]) == (1480, 1480, 990)
    assert found["avg_wait_s"] == sum(waits) / 4 and found["avg_jct_s"] == (sum(waits) + 1000 + 500 + 20 + 10) / 4
    assert found["cost"] == pytest.approx((8 * 1000 + 16 * 500 + 20 + 80) / 3600 * 3.6)


def test_the_table_for_people(trace: str, capsys: Capture) -> None:
    assert main(["simulate", trace, "cluster.nodes=2", "cluster.gpus_per_node=8", "scheduler=greedy"]) == 0
    head, columns, *rows = capsys.readouterr().out.splitlines()
    assert head == "4 jobs, submitted within 30s, on 16 GPUs (2 x 8); load 33.54"
    assert columns.split() == ["greedy"]
    assert "job completion time, mean" in rows[0] and rows[0].endswith(" s")
    assert not any(row.startswith("cost") for row in rows), "nothing has a price"


def test_policies_side_by_side(trace: str, capsys: Capture) -> None:
    flags = (trace, "cluster.nodes=2", "--compare", "fifo-strict,greedy")
    found = told(capsys, *flags)
    assert list(found) == ["fifo-strict", "greedy"]
    assert found["greedy"]["avg_jct_s"] < found["fifo-strict"]["avg_jct_s"]
    assert main(["simulate", *flags]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split() == ["fifo-strict", "greedy"]
    assert lines[3].split()[:5] == ["/", "that", "of", "fifo-strict", "1.000"]
    alone = told(capsys, trace, "cluster.nodes=2", "scheduler=greedy")
    timed = ("plans_per_s", "jobs_per_s")
    assert {**found["greedy"], **dict.fromkeys(timed)} == {**alone, **dict.fromkeys(timed)}


@pytest.mark.parametrize("policy", ["fifo", "batch", "preemptive"])
def test_each_shipped_policy_runs_all_jobs_to_their_end(policy: str, trace: str, capsys: Capture) -> None:
    found = told(capsys, trace, "cluster.nodes=2", f"scheduler={policy}", "scheduler.tenants.lab.quota=16")
    assert found["jobs"] == 4 and found["makespan_s"] >= 1500 and found["utilization"] > 0.5


def test_pictures_are_written(trace: str, tmp_path: Path, capsys: Capture) -> None:
    folder = tmp_path / "new" / "pictures"
    assert main(["simulate", trace, "cluster.nodes=2", "scheduler=greedy", "--plots", str(folder)]) == 0
    names = ["utilisation.png", "waits.png", "queue.png", "big_jobs.png"]
    assert capsys.readouterr().out.splitlines()[-4:] == [str(folder / name) for name in names]
    assert sorted(path.name for path in folder.iterdir()) == sorted(names)


def test_what_comes_is_the_same_each_time_with_failures_too(trace: str, capsys: Capture) -> None:
    flags = (trace, "cluster.nodes=2", "scheduler=greedy", "simulation.node_mtbf_s=1000", "simulation.node_repair_s=50")
    first, again, other = (told(capsys, *flags, f"simulation.seed={seed}") for seed in (1, 1, 2))
    assert first["lost_gpu_hours"] > 0
    assert first["avg_jct_s"] == again["avg_jct_s"] != other["avg_jct_s"]


# our own log


def test_the_jobs_of_this_machine_are_a_trace(home: Home, capsys: Capture) -> None:
    store = JobStore(home.jobs_db)
    for number, state in enumerate((JobState.SUCCEEDED, JobState.FAILED, JobState.RUNNING)):
        times = {"submitted_s": 1000.0 + number, "started_s": 1010.0, "ended_s": 1110.0}
        store.put(Job(id=f"job-{number}", spec=SPEC, state=state, **times))
    store.set_meta(CLUSTER, ClusterView(nodes=(Node(id="n", cpu_units=8 * CPU_UNITS, gpus=4),)).to_dict())
    assert main(["simulate", "--from-log", "scheduler=greedy"]) == 0
    left_out, head, *_ = capsys.readouterr().out.splitlines()
    assert left_out == f"{home.root}: left out are 1 job that have not ended and 0 jobs that never ran"
    assert head.startswith("2 jobs, submitted within 1s, on 4 GPUs (1 x 4)")
    assert told(capsys, "--from-log", str(home.root), "scheduler=greedy")["max_wait_s"] == 99
    assert told(capsys, "--from-log", "scheduler=greedy", "cluster.nodes=2")["max_wait_s"] == 0
    assert "job job-0 can never run on 4 GPUs: the cluster has 3 GPUs" in refusal(
        capsys, "--from-log", "cluster.nodes=1", "cluster.gpus_per_node=3"
    )


def test_a_log_without_a_job_or_without_gpus_is_refused(home: Home, capsys: Capture) -> None:
    assert "there are no jobs in" in refusal(capsys, "--from-log")
    assert not home.root.exists()
    store = JobStore(home.jobs_db)
    store.put(Job(id="a", spec=SPEC, state=JobState.RUNNING, started_s=1.0))
    assert refusal(capsys, "--from-log").endswith(" has run and ended: 1 live, 0 ended before they ran")
    store.put(Job(id="b", spec=SPEC, state=JobState.SUCCEEDED, started_s=1.0, ended_s=2.0))
    assert "no GPUs of that cluster are known. Give cluster.nodes; a worker on CPUs counts as a GPU" in refusal(capsys, "--from-log")


# what is asked wrongly


def test_the_trace_is_refused_with_line_field_and_reason(tmp_path: Path, capsys: Capture) -> None:
    for line, said in (
        ("x,-5,1,1,,,", "submit_s=-5 is not possible: allowed is seconds, at least 0."),
        ("a,5,1,1,,,", "job_id=a is there already, in line 2."),
        ("x,5,17,1,,,", "num_gpus=17 can never run: the cluster has 16 GPUs, 8 at most on a node."),
    ):
        path = written(tmp_path, "a,0,1,1,,,", line)
        assert refusal(capsys, path, "cluster.nodes=2") == f"{path} line 3: {said}"
    assert "no.csv cannot be read: No such file" in refusal(capsys, str(tmp_path / "no.csv"), "cluster.nodes=2")


def test_a_job_that_its_tenants_quota_can_never_hold_is_refused(trace: str, capsys: Capture) -> None:
    flags = (trace, "cluster.nodes=2", "scheduler.tenants.field.quota=1", "--compare", "fifo,greedy")
    assert refusal(capsys, *flags, "scheduler.tenants.lab.quota=15") == (
        f"{trace} line 3: num_gpus=16 can never run: scheduler.tenants.lab.quota is 15."
    )
    assert main(["simulate", *flags, "scheduler.tenants.lab.quota=16"]) == 0


def test_a_quota_for_an_unknown_tenant_is_refused(trace: str, capsys: Capture) -> None:
    said = refusal(capsys, trace, "cluster.nodes=2", "scheduler.tenants.filed.quota=8")
    assert said.endswith("Known: field, lab. Did you mean 'field'?") and said.startswith("scheduler.tenants.filed is not possible: ")


def test_settings_are_refused_with_the_nearest(trace: str, tmp_path: Path, capsys: Capture) -> None:
    known = "batch, fifo, preemptive, "
    assert refusal(capsys, trace, "cluster.nodes=2", "scheduler=presumptive").startswith(
        f"scheduler=presumptive is not possible: allowed is {known}"
    )
    said = refusal(capsys, trace, "cluster.nodes=2", "--compare", "fifo,gredy")
    assert said.startswith(f"scheduler=gredy is not possible: allowed is {known}") and said.endswith("Did you mean 'greedy'?")
    assert "exclude each other" in refusal(capsys, trace, "cluster.nodes=2", "scheduler=fifo", "--compare", "batch")
    assert refusal(capsys, trace, "cluster.nods=2").endswith("Did you mean 'cluster.nodes'?")
    assert refusal(capsys, trace).startswith("cluster.nodes=0 is not possible: say how many nodes")
    assert "'more.csv' is no override" in refusal(capsys, trace, "more.csv")
    assert refusal(capsys, trace, "cluster.nodes=2", "--plots", trace) == f"--plots={trace} is not possible: File exists."


def test_either_a_trace_or_the_log_is_asked_for(trace: str, capsys: Capture) -> None:
    for arguments in ([], ["cluster.nodes=2"], [trace, "--from-log"]):
        assert refusal(capsys, *arguments).startswith("give either a trace (TRACE.csv) or --from-log")
    assert "unrecognized arguments: --jsn" in refusal(capsys, trace, "--jsn")


def test_help_names_columns_policies_and_settings(capsys: Capture) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["simulate", "--help"])
    out = capsys.readouterr().out
    assert caught.value.code == 0
    for words in (HEADER.replace(",", ", "), "batch, fifo, preemptive", "fifo-strict", "gpus_per_node: 8", "node_mtbf_s: 0"):
        assert words in out


# the process


def test_it_starts_without_what_is_heavy() -> None:
    code = "import sys, orchestrator.cli.simulate; print(*{name.partition('.')[0] for name in sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not set(done.stdout.split()) & {"torch", "deepspeed", "transformers", "ray", "mlflow", "matplotlib", "boto3", "numpy"}


def test_ctrl_c_ends_it_with_a_sentence(tmp_path: Path) -> None:
    path = tmp_path / "trace.csv"
    os.mkfifo(path)
    command = [sys.executable, "-m", "orchestrator.cli", "simulate", str(path), "cluster.nodes=2", "scheduler=greedy"]
    heard = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # a shell in the background has told its children to ignore it
    running = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=heard)
    with path.open("w"):  # returns when the command has opened it, and waits for its first line
        running.send_signal(signal.SIGINT)
        out, err = running.communicate(timeout=LIMIT_S)
    assert (running.returncode, out) == (130, "")
    assert err == "orchestrator: stopped before the end: there is no table, and no picture\n"
