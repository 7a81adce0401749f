from __future__ import annotations

import json

import pytest

from orchestrator.errors import IllegalTransition
from orchestrator.job import (
    EndReason,
    Job,
    JobResult,
    JobState,
    Progress,
    check_transition,
    job_from_dict,
    job_to_dict,
    result_from_dict,
    result_to_dict,
)  # fmt: skip
from orchestrator.spec import DataSpec, JobSpec, ModelSpec, TrainingSpec, WorkloadSpec

SPEC = JobSpec(
    workload=WorkloadSpec(name="tiny", entrypoint="tiny:Tiny"),
    model=ModelSpec(name="m"),
    data=DataSpec(name="d"),
    training=TrainingSpec(max_steps=10, global_batch_size=8, micro_batch_size=2),
)


def test_a_job_is_the_same_after_json():
    result = JobResult(end_reason=EndReason.CANCELLED, message="stopped", step=3, metrics={"loss": 0.5}, resumable=True)
    job = Job(id="a-1", spec=SPEC, state=JobState.CANCELLED, progress=Progress(step=3, loss=0.5), result=result, placement=(("n1", 2),))
    assert job_from_dict(json.loads(json.dumps(job_to_dict(job)))) == job


def test_a_result_of_a_newer_version_is_read():
    values = result_to_dict(JobResult(end_reason=EndReason.HANG, message="x")) | {"unheard_of": 1}
    assert result_from_dict(values).end_reason is EndReason.HANG


def test_illegal_moves_raise_and_say_what_is_legal():
    with pytest.raises(IllegalTransition, match="queued cannot become running; it can become cancelled, failed, starting"):
        check_transition(JobState.QUEUED, JobState.RUNNING)
    check_transition(JobState.SUCCEEDED, JobState.QUEUED)
