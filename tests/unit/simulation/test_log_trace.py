"""The jobs of a control plane as a trace."""

from __future__ import annotations

import dataclasses

import pytest

from orchestrator.control.scheduler.model import CPU_UNITS, ClusterView, Node
from orchestrator.job import Job, JobState, Progress
from orchestrator.simulation.log_trace import LogTrace, log_trace, shapes_of
from orchestrator.simulation.model import Shape, TraceJob
from orchestrator.spec import DataSpec, JobSpec, ModelSpec, ResourcesSpec, SchedulingSpec, TrainingSpec, WorkloadSpec
from orchestrator.supervision.accounting import WAITS, Bucket
from orchestrator.supervision.ledger import Ledger

SPEC = JobSpec(
    workload=WorkloadSpec(name="tiny", entrypoint="tiny:Tiny"), model=ModelSpec(name="m"), data=DataSpec(name="d"),
    training=TrainingSpec(max_steps=10, global_batch_size=8, micro_batch_size=1),
)  # fmt: skip


def job(name: str, state: JobState = JobState.SUCCEEDED, ledger: Ledger | None = None, **more: object) -> Job:
    resources = ResourcesSpec(num_workers=4, gpus_per_worker=1, min_workers=2)
    times = {"submitted_s": 1000.0, "queued_s": 1000.0, "started_s": 1010.0, "ended_s": 1110.0}
    progress = Progress(ledger=ledger.to_dict() if ledger else {})
    spec = dataclasses.replace(SPEC, resources=resources)
    return Job(**{"id": name, "spec": spec, "state": state, "progress": progress, **times, **more})


def test_a_job_takes_what_it_took_without_its_interruptions() -> None:
    spent = dict.fromkeys(Bucket, 4.0) | {Bucket.STEP: 400.0, Bucket.QUEUE: 40.0}
    ledger = Ledger(until_s=1110.0, wall_s=110.0, worker_s=sum(spent.values()), seconds=spent, closed=True)
    useful_buckets = set(Bucket) - {*WAITS, Bucket.STEP, Bucket.LOST, Bucket.DETECTION, Bucket.HANG, Bucket.RECOVERY}
    assert log_trace([job("a", ledger=ledger)]) == LogTrace(
        jobs=(TraceJob(id="a", submit_s=0.0, gpus=4, duration_s=100.0 + len(useful_buckets), status="succeeded", sizes=(2, 4)),)
    )


def test_without_a_ledger_the_last_stay_is_all_that_is_known() -> None:
    (found,) = log_trace([job("a", JobState.CANCELLED)]).jobs
    assert (found.duration_s, found.status) == (100.0, "cancelled")


def test_whom_it_was_for_and_before_whom_it_came_are_kept() -> None:
    asked = SchedulingSpec(tenant="vision", priority=2, time_limit_s=600.0)
    (found,) = log_trace([job("a", spec=dataclasses.replace(SPEC, scheduling=asked), tenant="vision", user="ada")]).jobs
    assert (found.tenant, found.user, found.priority, found.limit_s) == ("vision", "ada", 2, 600.0)


def test_jobs_that_live_or_never_had_a_place_are_left_out_and_counted() -> None:
    store = [
        job("late", submitted_s=1005.0), job("first"), job("live", JobState.RUNNING, submitted_s=0.0),
        job("waits", JobState.QUEUED, submitted_s=0.0, started_s=None),
        job("never", JobState.CANCELLED, submitted_s=0.0, started_s=None),
    ]  # fmt: skip
    found = log_trace(store)
    assert (found.live, found.never_ran) == (2, 1)
    assert [(one.id, one.submit_s) for one in found.jobs] == [("first", 0.0), ("late", 5.0)]
    assert log_trace([]) == LogTrace()


@pytest.mark.parametrize(
    ("resources", "gpus", "sizes"),
    [
        (ResourcesSpec(num_workers=4), 4, ()),
        (ResourcesSpec(num_workers=4, gpus_per_worker=1), 4, ()),
        (ResourcesSpec(num_workers=8, gpus_per_worker=1, min_workers=2), 8, (2, 4, 8)),
    ],
)
def test_a_worker_without_gpus_counts_as_one(resources: ResourcesSpec, gpus: int, sizes: tuple[int, ...]) -> None:
    (found,) = log_trace([job("a", spec=dataclasses.replace(SPEC, resources=resources))]).jobs
    assert (found.gpus, found.sizes) == (gpus, sizes)


def test_the_nodes_of_the_cluster_are_those_with_gpus_that_live() -> None:
    gpus = [4, 8, 0, 8, 4, 4]
    nodes = [Node(id=str(number), cpu_units=CPU_UNITS, gpus=count, alive=number != 4) for number, count in enumerate(gpus)]
    assert shapes_of(ClusterView(nodes=tuple(nodes))) == (Shape(nodes=2, gpus_per_node=8), Shape(nodes=2, gpus_per_node=4))
    assert shapes_of(ClusterView()) == ()
