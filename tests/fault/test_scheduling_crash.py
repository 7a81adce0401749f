"""The controller dies at every one of its writes while a job leaves for another: nobody is told twice, charged twice or forgotten."""

from __future__ import annotations

import dataclasses
from itertools import pairwise

import pytest
from crashing_store import Crash, CrashingStore

from orchestrator.control.client import Client
from orchestrator.control.controller import Controller
from orchestrator.control.nodes.groups import GroupStatus, ScriptedGroups, done
from orchestrator.control.nodes.provisioning import Provisioner, ScriptedAutoscaler
from orchestrator.control.planning.replay import replay
from orchestrator.control.records.store import JobStore
from orchestrator.control.scheduler import ClusterView
from orchestrator.control.scheduler.model import CPU_UNITS, Node
from orchestrator.events import Event, EventKind
from orchestrator.job import EndReason, JobResult, JobState, Progress
from orchestrator.paths import Home
from orchestrator.spec import DataSpec, JobSpec, ModelSpec, ResourcesSpec, SchedulingSpec, TrainingSpec, WorkloadSpec
from orchestrator.supervision.accounting import Bucket
from orchestrator.supervision.ledger import Ledger

SPEC = JobSpec(
    workload=WorkloadSpec(name="tiny", entrypoint="tiny:Tiny"),
    model=ModelSpec(name="m"),
    data=DataSpec(name="d"),
    training=TrainingSpec(max_steps=6, global_batch_size=8, micro_batch_size=2),
    resources=ResourcesSpec(num_workers=2),
)
VIEW = ClusterView(nodes=(Node(id="n", cpu_units=2 * CPU_UNITS),))
LAST, ROUNDS = 6, 40


class ObedientGroups(ScriptedGroups):
    """Each supervisor does a step per question; told to leave, it writes its result and has ended."""

    def __init__(self):
        super().__init__()
        self.steps, self.starts, self.leaving = {}, {}, set()

    def start(self, job):
        if job.id not in self.supervisors:
            self.starts[job.id] = self.starts.get(job.id, 0) + 1
            self.leaving.discard(job.id)
        return super().start(job)

    def preempt(self, job, why, deadline_s):
        self.leaving.add(job.id)
        return super().preempt(job, why, deadline_s)

    def status(self, job, after_event):
        if job.id in self.supervisors and (job.id, job.run) not in self.results:
            step = self.steps[job.id] = min(self.steps.get(job.id, 0) + 1, LAST)
            reason = EndReason.COMPLETED if step == LAST else EndReason.PREEMPTED if job.id in self.leaving else None
            if reason is not None:
                self.results[job.id, job.run] = JobResult(end_reason=reason, message=reason.label, step=step)
            started = Event(kind=EventKind.STARTED, job_id=job.id, time_s=step, message=f"training from step {step}")
            self.supervisors[job.id] = GroupStatus(
                state=JobState.RUNNING, progress=Progress(step=step, committed_step=step, ledger=ledger(step, job.run)), source="1",
                ended=reason is not None, events=((1, started),),
            )  # fmt: skip
        return super().status(job, after_event)


def ledger(step, run):
    return Ledger(until_s=100.0 + step, seconds={Bucket.STEP: 2.0 * step, Bucket.START: 3.0 * run}).to_dict()


def live_through(root, at, kept):
    """A job, one of a higher priority that comes later, and one after that. The controller dies once."""
    home, groups, now = Home(root), ObedientGroups(), 100.0
    client = Client(home, clock=lambda: now)
    client.set_policy("quick", {"mode": "preemptive", "min_run_s": 0, "gain_factor": 0})
    ids = [client.submit(dataclasses.replace(SPEC, name="a", scheduling=SchedulingSpec(tenant="t")), {}).id]
    store = CrashingStore(home.jobs_db)
    store.at, store.kept, store.counts_progress = at, kept, False
    provisioner = Provisioner(home.node_types, ScriptedAutoscaler())
    controller = Controller(store, home, groups, lambda: done(VIEW), provisioner)
    for _ in range(ROUNDS):
        now += 1.0
        if len(ids) == 1 and groups.steps.get(ids[0], 0) >= 2:
            ids.append(client.submit(dataclasses.replace(SPEC, name="b", scheduling=SchedulingSpec(priority=1)), {}).id)
            ids.append(client.submit(dataclasses.replace(SPEC, name="c", scheduling=SchedulingSpec(priority=1, after=(ids[1],))), {}).id)
        try:
            controller.step(now)
        except Crash:
            controller = Controller(store, home, groups, lambda: done(VIEW), Provisioner(home.node_types, ScriptedAutoscaler()))
    return home, client, groups, ids, store.writes


def check(world, what):
    home, client, groups, ids, _ = world
    jobs = [client.job(job_id) for job_id in ids]
    told = [[event.kind for _, event in client.events(job_id)] for job_id in ids]
    assert [(job.state, job.progress.step, job.run) for job in jobs] == [
        (JobState.SUCCEEDED, LAST, 2), (JobState.SUCCEEDED, LAST, 1), (JobState.SUCCEEDED, LAST, 1)
    ], what  # fmt: skip
    assert [groups.starts[job_id] for job_id in ids] == [2, 1, 1], what
    assert [kinds.count(EventKind.PREEMPTED) for kinds in told] == [1, 0, 0], what
    assert [kinds.count(EventKind.RECEIPT) for kinds in told] == [1, 0, 0], what
    stays = [stay for _, stay in JobStore(home.jobs_db).stays()]
    assert [stay.job_id for stay in stays if stay.succeeded] == [ids[1], ids[2], ids[0]], what
    assert len(stays) == sum(kinds.count(EventKind.ADMITTED) for kinds in told), what
    assert all(before.ended_s <= after.started_s for before, after in pairwise(stays)), what
    for job in jobs:
        assert job.service.ran_s == sum(stay.ended_s - stay.started_s for stay in stays if stay.job_id == job.id), what
    assert jobs[0].service.preemptions == 1 and jobs[0].order is None, what
    again = replay(home.plans)
    assert again.plans >= 4 and again.differing == (), what


@pytest.fixture(scope="module")
def writes(tmp_path_factory):
    world = live_through(tmp_path_factory.mktemp("calm"), at=-1, kept=False)
    check(world, "calm")
    return world[-1]


@pytest.mark.parametrize("kept", [False, True])
def test_a_crash_at_any_write_changes_nothing_of_who_leaves_and_who_is_charged(writes, kept, tmp_path):
    """Of every two writes one is lost and one is kept: what follows a write that is lost is what precedes it."""
    for at in range(1 + kept, writes + 1, 2):
        check(live_through(tmp_path / str(at), at, kept), f"died at write {at} of {writes}")
