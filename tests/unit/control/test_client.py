from __future__ import annotations

import dataclasses
import json
import re
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from patience import LIMIT_S

from orchestrator.control.client import CLUSTER, Client
from orchestrator.control.records.store import JobStore
from orchestrator.control.scheduler import ClusterView
from orchestrator.control.scheduler.model import CPU_UNITS, Node
from orchestrator.errors import ConfigError, JobNotFound, StateError
from orchestrator.events import EventKind
from orchestrator.job import EndReason, JobResult, JobState, Progress
from orchestrator.paths import Home
from orchestrator.spec import (
    ClusterSpec,
    DataSpec,
    EnvironmentSpec,
    JobSpec,
    ModelSpec,
    ResourcesSpec,
    StorageSpec,
    TrainingSpec,
    WorkloadSpec,
)  # fmt: skip

SPEC = JobSpec(
    workload=WorkloadSpec(name="My_Tiny", entrypoint="tiny:Tiny"),
    model=ModelSpec(name="m"),
    data=DataSpec(name="d"),
    training=TrainingSpec(max_steps=10, global_batch_size=8, micro_batch_size=2),
)


@pytest.fixture
def home(tmp_path):
    return Home(tmp_path)


@pytest.fixture
def client(home):
    return Client(home)


def ended(client: Client, home: Home):
    """A job that was stopped at step 7 with a commit at 5."""
    store, job = JobStore(home.jobs_db), client.submit(SPEC, {})
    job = store.update(job, state=JobState.STARTING)
    result = JobResult(end_reason=EndReason.CANCELLED, message="stopped", step=7, committed_step=5, resumable=True)
    progress = Progress(step=7, loss=1.0, committed_step=5, phase="training")
    return store.update(job, state=JobState.CANCELLED, result=result, progress=progress, ended_s=1.0, stop_requested="drain")


def test_submit_is_durable_and_fills_in_the_home(client, home):
    job = client.submit(SPEC, {})
    assert re.fullmatch(r"my-tiny-[a-z2-7]{8}", job.id)
    found = Client(home).job(job.id)
    assert found == job
    assert found.spec.storage.url == home.store.as_uri()
    assert found.spec.tracking.uri == f"sqlite:///{home.mlflow}/mlflow.db"
    assert [event.kind for _, event in client.events(job.id)] == [EventKind.SUBMITTED]


def test_submissions_with_one_id_at_the_same_moment_make_one_job(home):
    together = threading.Barrier(8)

    def clock() -> float:
        together.wait(LIMIT_S)  # all have seen that there is no such job yet
        return 1.0

    client = Client(home, clock=clock)
    with ThreadPoolExecutor(together.parties) as threads:
        asked = [threads.submit(client.submit, SPEC, {"K": "v"}, "mine") for _ in range(together.parties)]
    assert [job.result() for job in asked] == [client.job("mine")] * together.parties
    assert [entry.action for entry in client.audit()] == ["submit"]
    assert [path.name for path in home.secrets_folder.iterdir()] == ["mine.json"]


def test_what_was_named_is_kept(client):
    spec = dataclasses.replace(SPEC, storage=StorageSpec(url="s3://bucket/x"), name="mine")
    job = client.submit(spec, {})
    assert job.spec.storage.url == "s3://bucket/x"
    assert job.id.startswith("mine-")


def test_secrets_are_for_the_owner_only_and_not_in_the_row(client, home):
    job = client.submit(SPEC, {"AWS_SECRET_ACCESS_KEY": "hunter2"})
    path = home.secrets(job.id)
    assert path.stat().st_mode & 0o777 == 0o600
    assert json.loads(path.read_text()) == {"AWS_SECRET_ACCESS_KEY": "hunter2"}
    assert b"hunter2" not in b"".join(file.read_bytes() for file in home.root.glob("jobs.db*"))


def test_a_secret_that_the_job_names_has_to_come_along_at_every_submission(client, home):
    spec = dataclasses.replace(SPEC, environment=EnvironmentSpec(secrets=("HF_TOKEN",)))
    with pytest.raises(ConfigError, match=r"environment\.secrets=HF_TOKEN is not possible"):
        client.submit(spec, {"OTHER": "x"})
    assert client.jobs() == []
    job = client.submit(spec, {"HF_TOKEN": "hf_x"})
    assert client.resume(job.id, None, {}).state is JobState.QUEUED, "a job that waits keeps those of its submission"
    with pytest.raises(ConfigError, match=r"environment\.secrets=HF_TOKEN is not possible"):
        client.resume(job.id, None, {"OTHER": "x"})
    assert json.loads(home.secrets(job.id).read_text()) == {"HF_TOKEN": "hf_x"}


def test_a_job_that_never_fits_is_refused_with_the_numbers(client, home):
    view = ClusterView(nodes=(Node(id="n", cpu_units=2 * CPU_UNITS),))
    JobStore(home.jobs_db).set_meta(CLUSTER, view.to_dict())
    with pytest.raises(ConfigError, match=r"num_workers=4 is more than the cluster can ever have.*4 x 1 CPU.*2 CPUs on 1 node") as caught:
        client.submit(dataclasses.replace(SPEC, resources=ResourcesSpec(num_workers=4)), {})
    assert caught.value.exit_code == 2
    assert client.jobs() == []
    assert client.submit(dataclasses.replace(SPEC, resources=ResourcesSpec(num_workers=2)), {}).state is JobState.QUEUED


def test_a_label_that_no_node_has_is_refused_with_those_that_there_are(client, home):
    nodes = tuple(Node(id=zone, cpu_units=2 * CPU_UNITS, labels=(("zone", zone),)) for zone in ("east", "west"))
    JobStore(home.jobs_db).set_meta(CLUSTER, ClusterView(nodes=nodes).to_dict())
    wanted = {
        "zone=easst": "zone=easst is not possible: allowed is east, west. Did you mean 'east'?",
        "rack=1": "rack=1 is not possible: no node has a label of that name",
    }
    for label, said in wanted.items():
        name, _, value = label.partition("=")
        with pytest.raises(ConfigError, match=re.escape(said)):
            client.submit(dataclasses.replace(SPEC, resources=ResourcesSpec(node_labels={name: value})), {})
    assert client.submit(dataclasses.replace(SPEC, resources=ResourcesSpec(node_labels={"zone": "west"})), {}).state is JobState.QUEUED


def test_of_two_requests_to_stop_the_stronger_holds(client):
    job = client.submit(SPEC, {})
    assert client.request_stop(job.id, "drain").stop_requested == "drain"
    assert client.request_stop(job.id, "now").stop_requested == "now"
    assert client.request_stop(job.id, "drain").stop_requested == "now"
    assert [event.kind for _, event in client.events(job.id, after=1)] == [EventKind.STOP_REQUESTED] * 2
    with pytest.raises(ConfigError, match="mode=later is not possible: allowed is drain or now"):
        client.request_stop(job.id, "later")


def test_a_job_that_has_ended_is_not_stopped(client, home):
    job = ended(client, home)
    assert client.request_stop(job.id, "now") == job


def test_resume_queues_the_same_job_for_one_more_run(client, home):
    old = ended(client, home)
    training = dataclasses.replace(SPEC.training, max_steps=20)
    job = client.resume(old.id, dataclasses.replace(SPEC, training=training), {"K": "v"})
    assert (job.id, job.state, job.run, job.stop_requested, job.result) == (old.id, JobState.QUEUED, 2, "", None)
    assert job.progress == Progress(step=7, max_steps=20, committed_step=5)
    assert job.spec.storage.url == home.store.as_uri()
    assert json.loads(home.secrets(job.id).read_text()) == {"K": "v"}
    assert client.events(job.id)[-1][1].kind is EventKind.RESUMED


def test_resume_leaves_a_job_that_has_not_ended(client):
    job = client.submit(SPEC, {})
    assert client.resume(job.id[:-1], None, {}) == job
    other = dataclasses.replace(SPEC, training=dataclasses.replace(SPEC.training, max_steps=11))
    with pytest.raises(StateError, match="is queued: its settings can be changed only after it has ended"):
        client.resume(job.id, other, {})


@pytest.mark.parametrize("after", [10**20, 2**53 + 1, -1])
def test_a_number_that_nothing_can_have_is_refused(client, after):
    job = client.submit(SPEC, {})
    for ask in (lambda: client.events(job.id, after), lambda: client.audit(after)):
        with pytest.raises(ConfigError, match=f"after {after} is not possible: allowed is a number from 0 to {2**53}"):
            ask()


def test_resume_tells_a_job_that_waits_on_which_cluster_it_goes_on(client):
    gone, here = ClusterSpec(address="10.0.0.1:6379"), ClusterSpec(address="10.0.0.2:6379")
    job = client.submit(dataclasses.replace(SPEC, cluster=gone), {})
    asked = dataclasses.replace(job.spec, cluster=here)
    found = client.resume(job.id, asked, {})
    assert (found.spec, found.state, found.run) == (asked, JobState.QUEUED, 1)
    assert [(entry.action, entry.detail) for entry in client.audit(limit=10)][-1] == ("resume", "on the cluster 10.0.0.2:6379")
    assert client.resume(job.id, None, {}) == client.job(job.id) == found


def test_an_unknown_job(client):
    with pytest.raises(JobNotFound, match="There is none yet"):
        client.job("gpt")


def test_the_client_needs_neither_ray_nor_torch():
    check = "import sys, orchestrator.control.client; assert not {'ray', 'torch', 'psutil'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", check], check=True)
