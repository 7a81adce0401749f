"""Ray's head is killed and comes again, knowing of nothing: jobs are requeued and go on from their commits, once."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter

import pytest
from harness import TESTS, TINY, Sandbox, held, kill
from patience import LIMIT_S, TRAINING_LIMIT_S
from ray_nodes import RayNodes

from orchestrator.checkpoints.commit import CommitLog
from orchestrator.control.lock import holder
from orchestrator.events import Event, EventKind
from orchestrator.job import JobState
from orchestrator.paths import JobKeys, commit_of
from orchestrator.ports import free_port

CPU = {"CPU": 2}
FULL = (*TINY, "resources.cpus_per_worker=1")
"""A job that leaves no room for another."""


class Service:
    """`orchestrator serve`, as whoever runs it would look after it: what ends is started again."""

    def __init__(self, sandbox: Sandbox, *options: str) -> None:
        self.sandbox, self.starts = sandbox, 0
        self._command = [sys.executable, "-m", "orchestrator.cli", "serve", "--port", str(free_port()), *options]
        self._process: subprocess.Popen[bytes] | None = None
        self.wait_until(self._ready, "a controller that serves")
        sandbox.client.set_policy("fifo", {"mode": "fifo"})  # else who has had less might come first

    def look_after(self) -> None:
        if self._process is None or self._process.poll() is not None:
            box, self.starts = self.sandbox, self.starts + 1
            with (box.root / f"serve-{self.starts}.log").open("wb") as log:
                self._process = subprocess.Popen(
                    self._command, cwd=TESTS, env=box.environment, stdout=log, stderr=log, start_new_session=True
                )  # fmt: skip

    def wait_until(self, condition, what):
        def met():
            self.look_after()
            return condition()

        return self.sandbox.wait_until(met, what, TRAINING_LIMIT_S)

    def _ready(self) -> bool:
        found = holder(self.sandbox.home)
        return found is not None and found.ready and bool(self.sandbox.client.nodes()[0].nodes)

    def close(self) -> None:
        self.sandbox.run("down")
        self._process.wait(timeout=LIMIT_S)


@pytest.fixture
def sandbox():
    box = Sandbox()
    yield box
    box.close()


@pytest.fixture
def nodes(sandbox):
    """A head without CPUs, as a cluster of some size has it, and a node for the jobs."""
    it = RayNodes(sandbox, {"CPU": 0})
    it.add(CPU)
    yield it
    it.close()


def test_the_head_of_a_cluster_that_others_started_comes_again(sandbox, nodes):
    """The old node lives on for a while without its head, and so do the job's ranks on it; its place is taken by a new one."""
    service = Service(sandbox, "--address", nodes.address)
    try:
        story = Story(sandbox, service, f"cluster.address={nodes.address}")
        killed = nodes.nodes()
        (head,) = killed.keys() - set(nodes.workers())
        for process in servers(nodes.processes(head)):
            kill(process)
        sandbox.wait_until(lambda: not nodes.processes(head), "the end of the head")
        nodes.start_head()
        nodes.add(CPU)
        story.goes_on()
        sandbox.wait_until(lambda: not sandbox.ranks(), "the end of all ranks, also on the old node")
    finally:
        service.close()


def test_the_head_that_the_service_started_itself_comes_again(sandbox):
    service = Service(sandbox, "--num-cpus", "2")
    try:
        story = Story(sandbox, service)
        for process in servers(sandbox.processes()):
            kill(process)
        story.goes_on()
    finally:
        service.close()


def servers(processes):
    """Ray's own of a head."""
    found = [process for process in processes if process.is_running() and process.name() in ("gcs_server", "raylet")]
    assert sorted(process.name() for process in found) == ["gcs_server", "raylet"], found
    return found


class Story:
    """A calm job; then one that stands still behind its first commit, and one that waits for its place."""

    def __init__(self, sandbox: Sandbox, service: Service, *more: str) -> None:
        self.sandbox, self.service, self.go_on = sandbox, service, sandbox.root / "go-on"
        self.calm = sandbox.submit(*FULL, *more)
        assert sandbox.wait_ended(self.calm).state is JobState.SUCCEEDED, sandbox.describe()
        self.running = sandbox.submit(*FULL, *more, *held(self.go_on, 20))
        sandbox.wait_until(lambda: sandbox.job(self.running).progress.committed_step == 20, "its commit of step 20")
        self.waiting = sandbox.submit(*FULL, *more)
        sandbox.wait_until(lambda: self.running in sandbox.job(self.waiting).reason, "the reason why the other one waits")

    def goes_on(self) -> None:
        box, running, waiting = self.sandbox, self.running, self.waiting
        self.service.wait_until(lambda: self.told(EventKind.SUPERVISOR_LOST), "the way back to the queue")
        self.go_on.touch()
        for job_id in (running, waiting):
            self.service.wait_until(lambda job_id=job_id: box.job(job_id).state.terminal, f"the end of {job_id}")
            assert box.job(job_id).state is JobState.SUCCEEDED, box.describe()
            assert box.history(job_id) == box.history(self.calm)
            assert box.fingerprint(job_id) == box.fingerprint(self.calm)
        requeued, resumed = (event.message for event in self.told(EventKind.SUPERVISOR_LOST))
        assert requeued == "its worker group was gone; queued again, goes on from its last commit"
        assert resumed == "the supervisor was started again; the job goes on from its newest checkpoint"
        assert {event.fields["step"] for event in self.told(EventKind.RESTORED)} == {20}, box.client.events(running)
        assert [len(self.told(kind)) for kind in (EventKind.ADMITTED, EventKind.ENDED)] == [2, 1]
        assert box.job(waiting).started_s >= box.job(running).ended_s, "the one that ran keeps its turn"
        self.each_step_was_committed_once()

    def told(self, kind: EventKind) -> list[Event]:
        return [event for _, event in self.sandbox.client.events(self.running) if event.kind is kind]

    def each_step_was_committed_once(self) -> None:
        """Whoever lived on without a head has written nothing that counts, and nothing beside it."""
        store, keys = self.sandbox.store(self.running), JobKeys(self.running)
        commits = [commit_of(info.key) for info in store.list(keys.commits)]
        assert Counter(step for _, step in commits) == Counter({step for _, step in commits}), commits
        assert {epoch for epoch, step in commits if step > 20} == {self.sandbox.job(self.running).progress.epoch}, commits
        assert CommitLog(store, keys).chain()[0].step == 120
