"""A rehearsal here and through a server: what it says and what stays of it. A thread plays the cluster."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.cli.rehearse import rehearse
from orchestrator.cli.screen import Screen
from orchestrator.client.connection import Verbs, connect
from orchestrator.control.api.server import ApiServer
from orchestrator.control.pulse import Pulse
from orchestrator.control.records.store import JobStore
from orchestrator.control.records.users import Users
from orchestrator.control.rehearsal import PREFIX
from orchestrator.events import Event, EventKind
from orchestrator.job import EndReason, Job, JobResult, JobState
from orchestrator.paths import Home, JobKeys
from orchestrator.spec import DataSpec, JobSpec, ModelSpec, TrackingSpec, TrainingSpec, WorkloadSpec
from orchestrator.storage import open_store

SPEC = JobSpec(
    workload=WorkloadSpec(name="tiny", entrypoint="tiny:Tiny"), model=ModelSpec(name="m"), data=DataSpec(name="d"),
    training=TrainingSpec(max_steps=100, global_batch_size=8, micro_batch_size=2), tracking=TrackingSpec(enabled=False),
)  # fmt: skip
BAD = dataclasses.replace(SPEC, model=ModelSpec(name="bad"))
SLOW = dataclasses.replace(SPEC, model=ModelSpec(name="slow"))


class Cluster:
    """Runs what is queued: a job of the model `bad` fails at its first step, one of `slow` goes on until it is told to stop."""

    def __init__(self, home: Home) -> None:
        self._store, self._home = JobStore(home.jobs_db), home
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        while not self._over.wait(0.005):
            for job in self._store.all([JobState.QUEUED]):
                self._run(self._store.update(job, state=JobState.STARTING))
            for job in self._store.all([JobState.STARTING]):
                if job.stop_requested:
                    self._store.update(job, state=JobState.CANCELLED, ended_s=1.0)

    def _run(self, job: Job) -> None:
        open_store(job.spec.storage).put(JobKeys(job.id).artifact(f"{job.run}.json"), b"{}")
        open_store(job.spec.storage).put("datasets/d/index", b"{}")
        told = [EventKind.PREPARED] if job.run == 1 else [EventKind.RESTORED]
        self._tell(job, told, "data")
        if job.spec.model.name == "slow":
            return
        if job.spec.model.name == "bad":
            end, state = JobResult(end_reason=EndReason.USER_ERROR, message="No module named 'x'"), JobState.FAILED
        else:
            self._tell(job, [EventKind.STARTED, EventKind.COMMITTED], "", step=job.run)
            end, state = JobResult(end_reason=EndReason.COMPLETED, message=""), JobState.SUCCEEDED
        self._store.update(job, state=state, ended_s=1.0, result=end)

    def _tell(self, job: Job, kinds: list[EventKind], message: str, **fields: int) -> None:
        events = [Event(kind=kind, job_id=job.id, time_s=1.0, message=message, fields=fields) for kind in kinds]
        self._store.tell_waiting([], events)

    def close(self) -> None:
        self._over.set()
        self._thread.join()
        self._store.close()


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Home]:
    home = Home(tmp_path / "served")
    cluster = Cluster(home)
    yield home
    cluster.close()


@pytest.fixture(params=["here", "through a server"])
def verbs(request: pytest.FixtureRequest, served: Home, tmp_path: Path) -> Iterator[Verbs]:
    if request.param == "here":
        yield connect(served)
        return
    server = ApiServer("127.0.0.1", 0)
    server.start(served, JobStore(served.jobs_db), Pulse())
    token = Users(JobStore(served.jobs_db).engine).add("ann", "vision", "user")
    yield connect(Home(tmp_path / "elsewhere"), server.url, token)
    server.stop()


def kept(home: Home) -> list[str]:
    return [path.name for path in home.store.rglob("*") if path.is_file()]


def test_a_rehearsal_that_succeeds_leaves_its_row_and_the_data_set(verbs: Verbs, served: Home, capsys: pytest.CaptureFixture[str]) -> None:
    found = rehearse(verbs, SPEC, 0, {}, Screen())
    assert (found.succeeded, found.exit_code, len(found.proofs)) == (True, 0, 4)
    said = capsys.readouterr().out
    assert said.count("  ok  ") == 4 and "the rehearsal succeeded" in said and "not all removed" not in said
    (job,) = verbs.jobs()
    assert job.id.startswith(PREFIX) and (job.run, job.state) == (2, JobState.SUCCEEDED)
    assert kept(served) == ["index"] and verbs.events(job.id)[-1][1].kind is EventKind.REMOVED


def test_a_rehearsal_that_fails_says_why_and_leaves_nothing_more(verbs: Verbs, served: Home, capsys: pytest.CaptureFixture[str]) -> None:
    found = rehearse(verbs, BAD, 0, {}, Screen())
    assert (found.succeeded, found.exit_code) == (False, 2)
    said = capsys.readouterr().out
    assert "so the job is not queued" in said and "No module named 'x'" in said and "  no  a step is trained" in said
    assert kept(served) == ["index"] and [job.run for job in verbs.jobs()] == [1]


def test_one_that_is_interrupted_is_stopped_and_removed(verbs: Verbs, served: Home) -> None:
    class Interrupted(Screen):
        lines = 0

        def line(self, text: str) -> None:
            self.lines += 1
            if self.lines == 1:
                wait_for_output()
                raise KeyboardInterrupt

    def wait_for_output() -> None:
        while "1.json" not in kept(served):
            pass

    with pytest.raises(KeyboardInterrupt):
        rehearse(verbs, SLOW, 0, {}, Interrupted())
    (job,) = verbs.jobs()
    assert (job.state, job.stop_requested) == (JobState.CANCELLED, "now")
    assert kept(served) == ["index"] and verbs.events(job.id)[-1][1].kind is EventKind.REMOVED
