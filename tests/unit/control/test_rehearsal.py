"""Which two steps a job is rehearsed by, and what they show."""

from __future__ import annotations

import dataclasses

import pytest

from orchestrator.config import load_job_spec
from orchestrator.control.rehearsal import advice, proofs, rehearsal_of, second_step
from orchestrator.errors import LayoutError
from orchestrator.events import Event, EventKind
from orchestrator.job import EndReason, Job, JobResult
from orchestrator.layout import layout_for
from orchestrator.spec import JobSpec


def spec_of(*overrides: str) -> JobSpec:
    return load_job_spec(["workload=gpt", *overrides])


@pytest.mark.parametrize(
    ("overrides", "workers", "batch"),
    [
        ([], 1, 2),
        (["resources.num_workers=6"], 1, 2),
        (["parallelism.tensor_parallel_size=2", "resources.num_workers=4", "parallelism.zero_stage=1"], 2, 2),
        (["parallelism.pipeline_parallel_size=2", "resources.num_workers=4"], 2, 4),
        (["model=gpt-5m", "parallelism.sequence_parallel_size=2", "resources.num_workers=4"], 2, 2),
        (["resources.num_workers=6", "resources.min_workers=2"], 1, 2),
        (["training.batch_size_warmup=[[24,6]]", "resources.num_workers=3"], 1, 2),
    ],
)
def test_as_few_workers_and_samples_as_the_layout_allows(overrides: list[str], workers: int, batch: int) -> None:
    asked = spec_of(*overrides)
    for found in (rehearsal_of(asked), second_step(rehearsal_of(asked))):
        assert (found.resources.num_workers, found.training.global_batch_size) == (workers, batch)
        assert layout_for(found).world_size == workers
        assert (found.workload, found.model, found.data, found.parallelism) == (asked.workload, asked.model, asked.data, asked.parallelism)


def test_what_would_take_long_or_outlast_it_is_off() -> None:
    asked = spec_of(
        "optimizer.warmup_steps=50", "training.eval_interval_steps=10", "checkpoint.keep_best=2", "training.profile_steps=[3,5]",
        "tracking.registered_model=mine", "training.early_stopping_patience=3", "name=a-name", "chaos.kill_rank=1",
        "scheduling.after=[other]", "scheduling.tenant=a",
    )  # fmt: skip
    found = rehearsal_of(asked)
    assert (found.name, found.training.max_steps, second_step(found).training.max_steps) == ("rehearse-a-name", 1, 2)
    assert (found.scheduling.after, found.scheduling.tenant) == ((), "a")
    assert not found.chaos.on and found.tracking.registered_model == "" and found.checkpoint.interval_steps == 1
    assert found.training.eval_samples == 4 and found.recovery.max_restarts == 0


def test_other_numbers_of_workers() -> None:
    asked = spec_of("resources.num_workers=6")
    assert rehearsal_of(asked, 6).resources.num_workers == 6
    assert rehearsal_of(asked, 3).training.global_batch_size == 6
    with pytest.raises(LayoutError, match=r"--rehearse=4 is not possible: allowed is 1, 2, 3, 6\."):
        rehearsal_of(asked, 4)


def event(kind: EventKind, message: str = "", **fields: int) -> Event:
    return Event(kind=kind, job_id="a", time_s=0.0, message=message, fields=fields)


GOOD = [
    event(EventKind.PREPARED, "data set 1"), event(EventKind.STARTED), event(EventKind.COMMITTED, step=1),
    event(EventKind.RESTORED, step=1), event(EventKind.STARTED), event(EventKind.COMMITTED, step=2),
]  # fmt: skip
TRACKED = JobResult(end_reason=EndReason.COMPLETED, message="", mlflow_run_id="f00d")


def shown(events: list[Event], result: JobResult | None = TRACKED) -> list[bool]:
    return [proof.shown for proof in proofs(Job(id="a", spec=spec_of(), result=result), events)]


def test_what_a_rehearsal_shows() -> None:
    assert shown(GOOD) == [True] * 5
    assert shown([]) == [False, False, False, False, True]
    assert shown(GOOD[:3]) == [True, True, True, False, True]
    assert shown([one for one in GOOD if one.kind is not EventKind.RESTORED]) == [True, True, True, False, True]


def test_a_tracking_server_that_did_not_take_it() -> None:
    assert shown(GOOD, dataclasses.replace(TRACKED, mlflow_run_id=""))[-1] is False
    assert shown([*GOOD, event(EventKind.WARNING, "the tracking server did not take all of it")])[-1] is False
    late = event(EventKind.WARNING, "the tracking server did not take all of it")  # the second run delivers it
    assert shown([*GOOD[:3], late, event(EventKind.RESUMED), *GOOD[3:]])[-1] is True
    untracked = spec_of("tracking.enabled=false")
    assert len(proofs(Job(id="a", spec=untracked), GOOD)) == 4


def test_too_little_memory_may_be_for_want_of_workers() -> None:
    result = JobResult(end_reason=EndReason.OUT_OF_MEMORY, message="")
    few = Job(id="a", spec=rehearsal_of(spec_of("resources.num_workers=6")), result=result)
    assert "It had 1 of 6 workers" in advice(few, 6) and "--rehearse=6" in advice(few, 6)
    assert advice(few, 1) == "" == advice(dataclasses.replace(few, result=TRACKED), 6)
    untracked = dataclasses.replace(few, result=dataclasses.replace(TRACKED, mlflow_run_id=""))
    assert advice(untracked, 6).startswith("`orchestrator doctor --only tracking")
