"""The controller dies at every one of its writes, before or after it; the one that follows brings all jobs to the same end."""

from __future__ import annotations

import dataclasses

import pytest
from crashing_store import Crash, CrashingStore

from orchestrator.control.client import Client
from orchestrator.control.controller import Controller
from orchestrator.control.nodes.groups import GroupStatus, ScriptedGroups, done
from orchestrator.control.nodes.provisioning import Provisioner, ScriptedAutoscaler
from orchestrator.control.scheduler import ClusterView
from orchestrator.control.scheduler.model import CPU_UNITS, Node
from orchestrator.events import Event, EventKind
from orchestrator.job import EndReason, JobResult, JobState, Progress
from orchestrator.paths import Home
from orchestrator.spec import DataSpec, JobSpec, ModelSpec, ResourcesSpec, TrainingSpec, WorkloadSpec

SPEC = JobSpec(
    workload=WorkloadSpec(name="tiny", entrypoint="tiny:Tiny"),
    model=ModelSpec(name="m"),
    data=DataSpec(name="d"),
    training=TrainingSpec(max_steps=4, global_batch_size=8, micro_batch_size=2),
    resources=ResourcesSpec(num_workers=2),
)
VIEW = ClusterView(nodes=(Node(id="n", cpu_units=2 * CPU_UNITS),))
ROUNDS = 60


class TrainingGroups(ScriptedGroups):
    """Each supervisor does a step per question, tells of it, and writes its result after the last."""

    def status(self, job, after_event):
        old = self.supervisors.get(job.id)
        if old is not None:
            step = min(old.progress.step + 1, 4)
            told = (Event(kind=EventKind.COMMITTED, job_id=job.id, time_s=n, message=f"step {n}") for n in range(1, step + 1))
            self.supervisors[job.id] = GroupStatus(
                state=JobState.RUNNING, progress=Progress(step=step, committed_step=step), source="1", ended=step == 4,
                events=tuple(enumerate(told, 1)),
            )  # fmt: skip
            if step == 4:
                self.results[job.id, job.run] = JobResult(end_reason=EndReason.COMPLETED, message="completed", step=4)
        return super().status(job, after_event)


def live_through(root, at: int, kept: bool):
    """Three jobs, the last of them cancelled, on a controller that dies once. Returns (ends, tales, number of writes)."""
    home, groups = Home(root), TrainingGroups()
    client = Client(home)
    ids = [client.submit(dataclasses.replace(SPEC, name=name), {}).id for name in ("a", "b", "c")]
    store = CrashingStore(home.jobs_db)
    store.at, store.kept = at, kept
    provisioner = Provisioner(home.node_types, ScriptedAutoscaler())
    controller, now = Controller(store, home, groups, lambda: done(VIEW), provisioner), 100.0
    for number in range(ROUNDS):
        now += 1.0
        if number == 6:
            client.request_stop(ids[2], "drain")
        try:
            controller.step(now)
        except Crash:
            controller = Controller(store, home, groups, lambda: done(VIEW), Provisioner(home.node_types, ScriptedAutoscaler()))
    jobs = [client.job(job_id) for job_id in ids]
    ends = [(job.state, job.progress.step, job.placement, job.run) for job in jobs]
    tales = [[(event.kind, event.message) for _, event in client.events(job_id)] for job_id in ids]
    return ends, tales, store.writes


def told(tale, *kinds):
    return [message for kind, message in tale if kind in kinds]


@pytest.fixture(scope="module")
def calm(tmp_path_factory):
    return live_through(tmp_path_factory.mktemp("calm"), at=-1, kept=False)


def test_the_calm_run_ends_as_it_should(calm):
    ends, tales, writes = calm
    assert [end[0] for end in ends] == [JobState.SUCCEEDED, JobState.SUCCEEDED, JobState.CANCELLED]
    assert told(tales[0], EventKind.COMMITTED) == ["step 1", "step 2", "step 3", "step 4"]
    assert writes > 10


@pytest.mark.parametrize("kept", [False, True])
def test_a_crash_at_any_write_changes_no_end_and_tells_nothing_twice(calm, kept, tmp_path):
    calm_ends, calm_tales, writes = calm
    for at in range(1, writes + 1):
        ends, tales, _ = live_through(tmp_path / str(at), at, kept)
        assert ends == calm_ends, f"died at write {at}"
        for tale, calm_tale in zip(tales, calm_tales, strict=True):
            for kinds in ((EventKind.COMMITTED,), (EventKind.ENDED,), (EventKind.SUBMITTED,)):
                assert told(tale, *kinds) == told(calm_tale, *kinds), f"died at write {at}"
