from __future__ import annotations

import os
import time

import pytest
from crashing_store import Crash, CrashingStore

from orchestrator.control.client import Client
from orchestrator.control.controller import Controller
from orchestrator.control.nodes.groups import ScriptedGroups, done
from orchestrator.control.nodes.provisioning import Provisioner, ScriptedAutoscaler
from orchestrator.control.records.store import JobStore
from orchestrator.control.scheduler import ClusterView
from orchestrator.control.scheduler.model import CPU_UNITS, Node
from orchestrator.control.secrets import ORPHAN_S, Secrets
from orchestrator.job import JobState
from orchestrator.paths import Home
from orchestrator.spec import DataSpec, JobSpec, ModelSpec, TrainingSpec, WorkloadSpec

SPEC = JobSpec(
    workload=WorkloadSpec(name="tiny", entrypoint="tiny:Tiny"),
    model=ModelSpec(name="m"),
    data=DataSpec(name="d"),
    training=TrainingSpec(max_steps=10, global_batch_size=8, micro_batch_size=2),
)


@pytest.fixture
def home(tmp_path):
    return Home(tmp_path)


def controller(home, store):
    view = ClusterView(nodes=(Node(id="n", cpu_units=CPU_UNITS),))
    return Controller(store, home, ScriptedGroups(), lambda: done(view), Provisioner(home.node_types, ScriptedAutoscaler()))


def test_what_a_controller_left_that_died_at_a_jobs_end_is_swept(home):
    client = Client(home)
    ended, waits = (client.submit(SPEC, {"K": "v"}).id for _ in range(2))
    client.request_stop(ended, "now")
    store = CrashingStore(home.jobs_db)
    store.at, store.kept = 1, True
    with pytest.raises(Crash):
        controller(home, store).step(1000.0)
    assert client.job(ended).state is JobState.CANCELLED and home.secrets(ended).exists()
    Secrets(home).sweep(JobStore(home.jobs_db), time.time())
    assert (Secrets(home).read(ended), Secrets(home).read(waits)) == ({}, {"K": "v"})


def test_what_belongs_to_no_job_is_swept_when_it_is_old(home):
    secrets, store, now_s = Secrets(home), JobStore(home.jobs_db), 10 * ORPHAN_S
    for name, age_s in (("old", ORPHAN_S + 1), ("new", ORPHAN_S - 1)):
        secrets.write(name, {"K": "v"})
        os.utime(home.secrets(name), (now_s - age_s, now_s - age_s))
    secrets.sweep(store, now_s)
    assert (secrets.read("old"), secrets.read("new")) == ({}, {"K": "v"})


def test_a_job_that_was_resumed_at_once_keeps_its_new_secrets(home):
    class ResumedAtOnce(JobStore):
        """Somebody resumes each job in the moment in which its end is written."""

        def update(self, job, *arguments, **changes):
            new = super().update(job, *arguments, **changes)
            if new.state.terminal:
                client.resume(new.id, None, {"K": "new"})
            return new

    client = Client(home)
    job_id = client.submit(SPEC, {"K": "old"}).id
    client.request_stop(job_id, "now")
    controller(home, ResumedAtOnce(home.jobs_db)).step(1000.0)
    assert (client.job(job_id).run, Secrets(home).read(job_id)) == (2, {"K": "new"})


def test_nothing_is_deleted_between_the_new_secrets_of_a_job_and_its_new_row(home):
    class Between(JobStore):
        def update(self, job, *arguments, **changes):
            Secrets(home).forget(self, job.id)
            Secrets(home).sweep(self, time.time())
            return super().update(job, *arguments, **changes)

    store = JobStore(home.jobs_db)
    job = Client(home, store).submit(SPEC, {"K": "old"})
    store.update(store.update(job, state=JobState.STARTING), state=JobState.FAILED)
    Client(home, Between(home.jobs_db)).resume(job.id, None, {"K": "new"})
    assert Secrets(home).read(job.id) == {"K": "new"}


def test_a_submission_that_was_broken_off_leaves_nothing_for_ever(home):
    class Broken(JobStore):
        def put(self, *arguments, **more):
            raise Crash

    with pytest.raises(Crash):
        Client(home, Broken(home.jobs_db)).submit(SPEC, {"K": "v"})
    (left,) = home.secrets_folder.iterdir()
    Secrets(home).sweep(JobStore(home.jobs_db), time.time())
    assert left.exists(), "it may be on its way"
    Secrets(home).sweep(JobStore(home.jobs_db), time.time() + ORPHAN_S + 60)
    assert not left.exists()
