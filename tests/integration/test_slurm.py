"""cluster/slurm.sh on an allocation of two nodes that are this machine: `srun` and `scontrol` are doubles, Ray's nodes are real."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from harness import TESTS, TINY, Sandbox
from patience import LIMIT_S

from orchestrator.job import JobState
from orchestrator.ports import free_port

SCRIPT = Path(__file__).parents[2] / "cluster" / "slurm.sh"
DOUBLES = {
    "scontrol": 'test "$*" = "show hostnames node[1-2]" && printf "node1\\nnode2\\n"',
    # a step: what it is asked to run is run here, without the options; a signal to srun ends the step
    "srun": 'while [[ "$1" == --* ]]; do echo "$1" >>"$SRUN_LOG"; shift; done; exec "$@"',
    "hostname": "echo 127.0.0.1",
}


@pytest.fixture
def allocation(tmp_path):
    sandbox = Sandbox()
    for name, lines in DOUBLES.items():
        path = tmp_path / name
        path.write_text(f"#!/usr/bin/env bash\n{lines}\n")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
    environment = {
        **sandbox.environment, "PATH": f"{tmp_path}:{os.environ['PATH']}", "PYTHON": sys.executable, "SRUN_LOG": str(tmp_path / "srun.log"),
        "SLURM_JOB_NODELIST": "node[1-2]", "SLURM_CPUS_ON_NODE": "1", "NOTICE_S": "60", "OBJECT_STORE_BYTES": "80000000",
    }  # fmt: skip

    def start(*arguments):
        port = str(free_port())
        return subprocess.Popen(
            [SCRIPT, *arguments], env={**environment, "SLURM_JOB_ID": port, "RAY_PORT": port}, cwd=TESTS, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True, start_new_session=True,
        )  # fmt: skip

    yield sandbox, start, tmp_path / "srun.log"
    sandbox.close()


@pytest.mark.slow
def test_a_job_runs_over_the_allocation_and_is_saved_and_queued_when_its_time_is_over(allocation):
    sandbox, start, log = allocation
    spread = ("resources.max_workers_per_node=1", "resources.cpus_per_worker=1", "training.max_steps=50000")
    script = start("train", *TINY, *spread)
    job_id = sandbox.wait_until(lambda: next((job.id for job in sandbox.jobs()), ""), "the job")
    sandbox.wait_step(job_id, 10)
    assert len({node for node, _ in sandbox.job(job_id).placement}) == 2
    script.send_signal(signal.SIGUSR1)  # as Slurm's --signal=B:USR1
    sandbox.wait_until(lambda: sandbox.job(job_id).state is JobState.QUEUED, "the way back to the queue")
    script.send_signal(signal.SIGTERM)
    output, _ = script.communicate(timeout=LIMIT_S)
    assert "ready: 2 nodes of 1 CPUs" in output and script.returncode == 143, output
    job = sandbox.job(job_id)
    assert (job.state, job.progress.preemptions) == (JobState.QUEUED, 1) and job.progress.committed_step >= 10
    assert {"--nodelist=node1", "--nodelist=node2"} <= set(log.read_text().split())
    sandbox.wait_until(lambda: not sandbox.processes(), "the end of all that was started")

    script = start("resume", job_id)  # the next allocation: another head
    sandbox.wait_until(lambda: sandbox.job(job_id).spec.cluster.address != job.spec.cluster.address, "the job's way to the next head")
    sandbox.wait_until(lambda: sandbox.job(job_id).state is JobState.RUNNING, "its second run")
    sandbox.wait_step(job_id, job.progress.committed_step + 10)
    assert sandbox.run("cancel", job_id, "--now")[0] == 0
    output, _ = script.communicate(timeout=LIMIT_S)
    assert f"resuming {job_id} from step {job.progress.committed_step}" in output and script.returncode == 1, output
