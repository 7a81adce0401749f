"""A workload in the user's own working directory: packaged, rehearsed, run from its package, mended and resumed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from harness import TESTS, TINY, Sandbox
from patience import TRAINING_LIMIT_S

from orchestrator.control.reading.logs import LogReader
from orchestrator.control.rehearsal import PREFIX
from orchestrator.job import EndReason, JobState
from orchestrator.paths import JobKeys

MODULE = """
import os
from pathlib import Path
from helpers.base import Tiny

WORD = (Path(__file__).parent / "word.txt").read_text().strip()

class Mine(Tiny):
    def loss(self, model, batch):
        print(f"{WORD} {os.environ['MODE']} rank {os.environ['RANK']}")
        return super().loss(model, batch)
"""
MINE = (*TINY, "workload.entrypoint=mine:Mine", "name=mine", "+environment.variables.MODE=quiet", "training.max_steps=30")


@pytest.fixture(scope="module")
def sandbox():
    box = Sandbox()
    yield box
    box.close()


@pytest.fixture
def folder(sandbox, tmp_path: Path) -> Path:
    """The working directory that the next commands are given from."""
    code = tmp_path / "code"
    (code / "helpers").mkdir(parents=True)
    (code / "helpers" / "__init__.py").touch()
    shutil.copy(TESTS / "tiny_workload.py", code / "helpers" / "base.py")
    (code / "mine.py").write_text(MODULE)
    (code / "word.txt").write_text("hello\n")
    (code / "large.bin").write_bytes(b"x" * 3_000_000)
    (code / ".orchestratorignore").write_text("large.bin\n")
    sandbox.folder = code
    return code


def printed(sandbox: Sandbox, job_id: str) -> list[str]:
    return [line.text for line in LogReader(sandbox.store(job_id), job_id).lines(ended=True)]


def test_a_cluster_without_a_job(sandbox):
    code, output = sandbox.run("up", "--json", "cluster.num_cpus=2")
    told = json.loads(output.splitlines()[-1])
    assert (code, told["started"], told["idle_timeout_s"]) == (0, True, None), output
    code, output = sandbox.run("up")
    assert code == 0 and f"the cluster at {told['address']} was up" in output and "it stays until it is told to stop" in output


def test_a_rehearsed_job_runs_from_its_package_where_the_folder_is_not(sandbox, folder):
    code, output = sandbox.run("submit", "--rehearse", "--json", *MINE, "environment.max_package_mb=1", "tracking.enabled=true")
    assert code == 0, output + sandbox.describe()
    told = [line for line in output.splitlines() if line.startswith("  ok  ")]
    job_id = json.loads(output.splitlines()[-1])["id"]
    shutil.rmtree(folder)
    rehearsal = next(job for job in sandbox.jobs() if job.id.startswith(PREFIX))
    assert len(told) == 5 and "the tracking server takes its figures" in told[-1]
    assert rehearsal.state is JobState.SUCCEEDED and rehearsal.progress.step == 2
    assert rehearsal.spec.resources.num_workers == 1
    assert list(sandbox.store(job_id).list(JobKeys(rehearsal.id).root)) == []
    sandbox.folder = TESTS
    code, output = sandbox.run("wait", job_id, "--timeout", str(TRAINING_LIMIT_S))
    assert code == 0, output + sandbox.describe()
    assert {"hello quiet rank 0", "hello quiet rank 1"} <= set(printed(sandbox, job_id))
    code, output = sandbox.run("logs", "-f", job_id, "--rank", "1")
    of_one = [line.text for line in LogReader(sandbox.store(job_id), job_id, rank=1).lines(ended=True)]
    assert (code, output.splitlines()) == (0, of_one)


def test_a_rehearsal_that_fails_queues_nothing_and_leaves_nothing(sandbox, folder):
    (folder / "mine.py").write_text(MODULE + "\nimport a_module_that_is_not_there\n")
    code, output = sandbox.run("submit", "--rehearse", *MINE)
    assert code == 2 and "No module named 'a_module_that_is_not_there'" in output, output
    assert "so the job is not queued" in output and "  no  the workload is imported" in output
    newest = sandbox.jobs()[-1]
    assert newest.id.startswith(PREFIX) and newest.result.end_reason is EndReason.USER_ERROR
    assert list(sandbox.store(newest.id).list(JobKeys(newest.id).root)) == []


def test_a_rehearsal_finds_out_that_the_tracking_server_is_not_there(sandbox, folder):
    nowhere = ("tracking.enabled=true", "tracking.uri=http://127.0.0.1:9", "tracking.drain_timeout_s=2")
    before = {job.id for job in sandbox.jobs()}
    code, output = sandbox.run("submit", "--rehearse", *MINE, *nowhere)
    assert code != 0 and "  no  the tracking server takes its figures" in output and "so the job is not queued" in output, output
    assert all(job.id.startswith(PREFIX) for job in sandbox.jobs() if job.id not in before)


def test_a_job_that_failed_is_mended_in_the_folder_and_goes_on_with_the_new_code(sandbox, folder):
    (folder / "mine.py").write_text(MODULE.replace("print(", "raise ValueError('a bug') if model.training else print("))
    job_id = sandbox.submit(*MINE)
    assert sandbox.wait_ended(job_id).state is JobState.FAILED
    before = sandbox.job(job_id).spec.workload.package
    (folder / "mine.py").write_text(MODULE)
    (folder / "word.txt").write_text("mended\n")
    code, output = sandbox.run("resume", job_id, "--detach", 'environment.requirements=["numpy>=1"]')
    assert code == 0, output
    assert sandbox.wait_ended(job_id).state is JobState.SUCCEEDED, sandbox.describe()
    assert "mended quiet rank 0" in printed(sandbox, job_id)
    assert sandbox.job(job_id).spec.workload.package != before


def test_a_node_without_a_package_that_the_job_names(sandbox, folder):
    job_id = sandbox.submit(*MINE, 'environment.requirements=["numpy>=999"]')
    job = sandbox.wait_ended(job_id)
    assert job.state is JobState.FAILED and job.result.end_reason is EndReason.CONFIGURATION
    assert "environment.requirements=['numpy>=999'] is not met on node" in job.result.message


def test_the_doctor_of_a_cluster_that_runs_and_its_end(sandbox):
    code, output = sandbox.run("doctor", "--json", "--only", "control plane,cluster,secrets,object store")
    assert code == 0, output
    assert {row["level"] for row in json.loads(output)} == {"ok"}, output
    code, output = sandbox.run("down", "--json")
    assert (code, json.loads(output.splitlines()[-1])) == (0, {"stopped": True, "waiting": []}), output
