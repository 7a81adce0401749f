"""What `train` and `resume` say at the end of a job, and their exit status."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.cli.follow import follow
from orchestrator.cli.screen import Screen
from orchestrator.client.connection import Local
from orchestrator.control.local import LocalCluster
from orchestrator.control.records.store import JobStore
from orchestrator.job import EndReason, Job, JobResult, JobState
from orchestrator.paths import Home
from orchestrator.spec import DataSpec, JobSpec, ModelSpec, StorageSpec, TrainingSpec, WorkloadSpec


@pytest.mark.parametrize(
    ("state", "reason", "status"),
    [
        (JobState.SUCCEEDED, EndReason.COMPLETED, 0),
        (JobState.CANCELLED, EndReason.CANCELLED, 1),
        (JobState.CANCELLED, EndReason.TIME_LIMIT, 1),
        (JobState.CANCELLED, EndReason.DEPENDENCY, 1),
        (JobState.FAILED, EndReason.NODE_LOST, 1),
        (JobState.FAILED, EndReason.USER_ERROR, 2),
    ],
)
def test_the_exit_status_says_whether_the_job_succeeded(
    state: JobState, reason: EndReason, status: int, home: Home, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = JobSpec(
        workload=WorkloadSpec(name="tiny", entrypoint="tiny:Tiny"), model=ModelSpec(name="m"), data=DataSpec(name="d"),
        training=TrainingSpec(max_steps=10, global_batch_size=8, micro_batch_size=2), storage=StorageSpec(url=tmp_path.as_uri()),
    )  # fmt: skip
    JobStore(home.jobs_db).put(Job(id="a", spec=spec, state=state, reason="why", result=JobResult(end_reason=reason, message="why")))
    assert follow(Local(home), "a", LocalCluster(address="", started=False), Screen()) == status
    assert "why" in capsys.readouterr().out
