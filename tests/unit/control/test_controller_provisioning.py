"""The controller on a cluster that an autoscaler can make larger."""

from __future__ import annotations

import pytest
import yaml

from orchestrator.control.client import Client
from orchestrator.control.controller import SETTLE_S, Controller
from orchestrator.control.nodes.groups import ScriptedGroups, done
from orchestrator.control.nodes.provisioning import Launches, Provisioner, ScriptedAutoscaler
from orchestrator.control.records.store import JobStore
from orchestrator.control.scheduler import ClusterView
from orchestrator.control.scheduler.model import CPU_UNITS, Node
from orchestrator.errors import ConfigError
from orchestrator.events import EventKind
from orchestrator.job import JobState
from orchestrator.paths import Home
from orchestrator.spec import DataSpec, JobSpec, ModelSpec, ResourcesSpec, TrainingSpec, WorkloadSpec
from orchestrator.supervision.accounting import Bucket
from orchestrator.supervision.ledger import Wait, as_of, opened


class World:
    """Two nodes could come beside the one with 2 CPUs; the clock moves by `turn` alone."""

    def __init__(self, root):
        self.home = Home(root)
        types = {"available_node_types": {"cpu": {"resources": {"CPU": 2}, "max_workers": 3}}}
        self.home.node_types.write_text(yaml.safe_dump(types))
        self.autoscaler, self.groups, self.now = ScriptedAutoscaler(), ScriptedGroups(), 1000.0
        self.nodes = [Node(id="a", cpu_units=2 * CPU_UNITS, type="cpu")]
        self.client, self.store = Client(self.home, clock=lambda: self.now), JobStore(self.home.jobs_db)
        provisioner = Provisioner(self.home.node_types, self.autoscaler)
        self.controller = Controller(
            self.store, self.home, self.groups, lambda: done(ClusterView(nodes=tuple(self.nodes))), provisioner
        )  # fmt: skip

    def turn(self, rounds=4, seconds=1.0):
        for _ in range(rounds):
            self.now += seconds
            self.controller.step(self.now)

    def submit(self, workers):
        spec = JobSpec(
            workload=WorkloadSpec(name="tiny", entrypoint="tiny:Tiny"), model=ModelSpec(name="m"), data=DataSpec(name="d"),
            training=TrainingSpec(max_steps=10, global_batch_size=24, micro_batch_size=1),
            resources=ResourcesSpec(num_workers=workers, max_workers_per_node=2),
        )  # fmt: skip
        return self.client.submit(spec, {}).id


@pytest.fixture
def world(tmp_path):
    return World(tmp_path)


def test_a_job_waits_for_nodes_with_a_reason_and_starts_when_they_are_there(world):
    job_id = world.submit(6)
    world.turn()
    job = world.client.job(job_id)
    assert (job.state, job.reason) == (JobState.QUEUED, "waits for nodes: 4 more CPUs asked of the autoscaler")
    assert len(world.autoscaler.asked[-1]) == 3
    world.autoscaler.launches = Launches(starting={"cpu": 2})
    world.turn(10)
    assert world.client.job(job_id).reason == "waits for nodes: 4 more CPUs asked of the autoscaler; 2 of 2 nodes on the way"
    world.nodes += [Node(id=name, cpu_units=2 * CPU_UNITS, type="cpu") for name in "bc"]
    world.turn()
    job = world.client.job(job_id)
    assert (job.state, job.placement) == (JobState.STARTING, (("a", 2), ("b", 2), ("c", 2)))
    assert world.autoscaler.asked[-1] == ()
    waits = [event.message for _, event in world.client.events(job_id) if event.kind is EventKind.WAITING]
    assert waits[0] == "waits for nodes: 4 more CPUs asked of the autoscaler"


def test_the_wait_for_nodes_is_told_by_phase_and_outlives_the_controller(world):
    job_id = world.submit(6)
    world.turn()
    asked_s = world.client.job(job_id).progress.nodes_asked_s
    assert 1000.0 < asked_s <= world.now
    world.autoscaler.launches = Launches(starting={"cpu": 1})
    world.turn(10)
    assert world.client.job(job_id).progress.nodes_launched_s < asked_s, "one of two is on its way"
    world.autoscaler.launches = Launches(starting={"cpu": 2})
    world.turn(10)
    launched_s = world.client.job(job_id).progress.nodes_launched_s
    assert asked_s < launched_s <= world.now
    waiting = world.client.job(job_id)
    world.nodes += [Node(id=name, cpu_units=2 * CPU_UNITS, type="cpu") for name in "bc"]
    world.turn()
    job = world.client.job(job_id)
    assert job.state is JobState.STARTING
    seconds = opened(None, run=1, wait=Wait.of(job), heard_s=0.0, now_s=job.started_s + 2.0, workers=1).seconds
    expected = {
        Bucket.QUEUE: asked_s - 1000.0, Bucket.LAUNCH: launched_s - asked_s, Bucket.BOOT: job.started_s - launched_s,
        Bucket.PROVISION: 2.0,
    }  # fmt: skip
    assert {bucket: spent for bucket, spent in seconds.items() if spent} == pytest.approx(expected)
    (admitted,) = [event.message for _, event in world.client.events(job_id) if event.kind is EventKind.ADMITTED]
    assert admitted == (
        f"workers: 2 on a, 2 on b, 2 on c; nodes were asked for {job.started_s - asked_s:.0f} s before: {launched_s - asked_s:.0f} s until "
        f"all were on their way, {job.started_s - launched_s:.0f} s until the place was there"
    )
    shown = as_of(waiting, job.started_s)
    assert shown is not None and shown.held_s == 0.0
    assert {bucket: spent / 6 for bucket, spent in shown.seconds.items() if spent} == pytest.approx(
        {bucket: expected[bucket] for bucket in (Bucket.QUEUE, Bucket.LAUNCH, Bucket.BOOT)}
    )


def test_what_the_cluster_can_become_may_be_submitted_and_no_more(world):
    world.submit(6)
    world.turn()
    world.submit(6)
    with pytest.raises(ConfigError, match="the cluster has 6 CPUs on 3 nodes in all"):
        world.submit(8)


def test_nothing_stands_by_on_nodes_that_are_to_become_idle(world):
    world.turn(4, seconds=SETTLE_S)
    assert set(world.groups.kept) == {()}
