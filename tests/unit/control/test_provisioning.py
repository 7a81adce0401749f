from __future__ import annotations

import os

import pytest
import yaml

from orchestrator.control.nodes.groups import failed
from orchestrator.control.nodes.provisioning import (
    LOOK_S,
    PATIENCE_S,
    PAUSE_S,
    RESEND_S,
    Bundle,
    Launches,
    NodeType,
    Provisioner,
    ScriptedAutoscaler,
    asked_since,
    read_node_types,
)
from orchestrator.control.scheduler import ClusterView, Demand, Job, Policy, Usage, plan_ahead
from orchestrator.control.scheduler.model import CPU_UNITS, Node
from orchestrator.errors import ClusterError, ConfigError
from orchestrator.job import Progress

TYPES = {
    "max_workers": 4, "head_node_type": "head",
    "available_node_types": {
        "head": {"resources": {"CPU": 4}, "max_workers": 0},
        "gpu": {"resources": {"CPU": 8, "GPU": 4}, "max_workers": 2},
        "spot": {"resources": {"CPU": 8, "GPU": 4}, "priority": 5},
    },
}  # fmt: skip


class World:
    """A provisioner on a cluster of one node of 4 GPUs, and jobs that wait."""

    def __init__(self, folder, values=TYPES):
        self.path = folder / "node-types.yaml"
        self.path.write_text(yaml.safe_dump(values))
        self.autoscaler = ScriptedAutoscaler()
        self.provisioner = Provisioner(self.path, self.autoscaler)
        self.nodes = [Node(id="aa", cpu_units=8 * CPU_UNITS, gpus=4, type="gpu")]
        self.now = 1000.0

    def turn(self, *workers, seconds=1.0):
        """A round with jobs of so many workers each."""
        self.now += seconds
        queue = tuple(
            Job(id=f"job-{i}", demand=Demand(num_workers=count, cpu_units=CPU_UNITS, gpus=1), submitted_s=float(i), queued_s=float(i))
            for i, count in enumerate(workers)
        )
        view = self.provisioner.extended(ClusterView(nodes=tuple(self.nodes)))
        view = self.provisioner.sight(view, self.now)
        decided = plan_ahead(view, queue, (), Usage(), self.now, Policy())
        self.provisioner.heard(decided, view, self.now)
        self.provisioner.step(self.now)
        return decided


@pytest.fixture
def world(tmp_path):
    return World(tmp_path)


def test_the_types_are_read_from_the_clusters_configuration(world):
    types, limit = read_node_types(world.path)
    assert limit == 4
    assert types == (
        NodeType(name="spot", cpu_units=8 * CPU_UNITS, gpus=4, max_nodes=4, priority=5),
        NodeType(name="gpu", cpu_units=8 * CPU_UNITS, gpus=4, max_nodes=2),
    )


@pytest.mark.parametrize(
    "values, said",
    [
        ([], "available_node_types=None is not possible: allowed is a mapping"),
        ({"available_node_types": {"a": {"resources": {}}}}, "a.resources={} is not possible"),
        ({"available_node_types": {"a": {"resources": {"CPU": 1}}}}, "a.max_workers=None is not possible: allowed is a whole number"),
        ({"available_node_types": {"a": {"resources": {"CPU": 1}, "max_workers": -1}}}, "a.max_workers=-1 is not possible"),
        ({"available_node_types": {"a": {"resources": {"CPU": 1}, "max_workers": "2"}}}, "a.max_workers=2 is not possible"),
        ({"available_node_types": {"a": {"resources": {"CPU": "48"}, "max_workers": 2}}}, "a.resources.CPU=48 is not possible"),
        ({"available_node_types": {"a": {"resources": {"CPU": 1, "GPU": 0.5}, "max_workers": 2}}}, "a.resources.GPU=0.5 is not possible"),
        ({"available_node_types": {"a": {"resources": {"CPU": 1}, "max_workers": 2, "priority": "x"}}}, "a.priority=x is not possible"),
        ({"available_node_types": {"a": {"resources": {"CPU": 1}, "max_workers": 2, "labels": ["x"]}}}, "a.labels=['x'] is not possible"),
        ({"available_node_types": {}, "max_workers": "10"}, "max_workers=10 is not possible"),
    ],
)
def test_types_that_say_too_little_are_refused_with_the_setting(tmp_path, values, said):
    path = tmp_path / "types.yaml"
    path.write_text(yaml.safe_dump(values))
    with pytest.raises(ConfigError) as refused:
        read_node_types(path)
    assert said in str(refused.value) and str(path) in str(refused.value)


def test_whole_nodes_are_asked_for_once_and_kept_ones_with_them_and_taken_back(world):
    world.turn(12)
    new = {"ray.io/node-id": "!in(aa)"}
    whole = Bundle(cpus=8.0, gpus=4, selector=new)
    assert world.autoscaler.asked == [(Bundle(cpus=8.0, gpus=4, selector={"ray.io/node-id": "aa"}), whole, whole)]
    world.turn(12)
    assert len(world.autoscaler.asked) == 1, "the same is not asked again"
    world.turn()
    assert world.autoscaler.asked[1:] == [()]


def test_a_node_that_has_come_is_kept_while_the_others_come(world):
    world.turn(12)
    world.nodes.append(Node(id="bb", cpu_units=8 * CPU_UNITS, gpus=4, type="spot"))
    world.turn(12)
    assert [dict(bundle.selector)["ray.io/node-id"] for bundle in world.autoscaler.asked[-1]] == ["aa", "bb", "!in(aa,bb)"]
    world.nodes.append(Node(id="cc", cpu_units=8 * CPU_UNITS, gpus=4, type="spot"))
    decided = world.turn(12)
    assert [start.job_id for start in decided.starts] == ["job-0"] and world.autoscaler.asked[-1] == ()


def test_a_demand_is_sent_again_after_a_while_and_soon_after_it_failed(world):
    world.turn(12)
    world.turn(12, seconds=RESEND_S)
    assert len(world.autoscaler.asked) == 2
    world.autoscaler.answer = lambda value: failed(ClusterError("Ray is away"))
    world.turn(16)
    world.autoscaler.answer = ScriptedAutoscaler().answer
    world.turn(16, seconds=LOOK_S)
    assert len(world.autoscaler.asked) == 4


def test_what_is_on_its_way_is_told(world):
    world.autoscaler.launches = Launches(starting={"spot": 1})
    world.turn(12)
    world.turn(12)
    assert world.turn(12).reasons["job-0"].endswith("; 1 of 2 nodes on the way")


def test_jobs_behind_get_what_is_there_when_no_node_comes_and_nodes_are_asked_for_again_later(world):
    assert world.turn(12, 1).starts == ()
    world.autoscaler.launches = Launches(failures=("1 x spot failed: no capacity",))
    for _ in range(3):
        world.turn(12, 1, seconds=PATIENCE_S / 2)
    assert world.autoscaler.asked[-1] == ()
    decided = world.turn(12, 1)
    assert [start.job_id for start in decided.starts] == ["job-1"]
    assert "the cluster has 8 CPUs and 4 GPUs on 1 node in all" in decided.reasons["job-0"]
    world.turn(12, 1, seconds=PAUSE_S)
    assert len(world.autoscaler.asked[-1]) == 4, "one for the second job, too"


def test_what_is_there_is_kept_as_long_as_nodes_are_on_their_way(world):
    world.autoscaler.launches = Launches(starting={"spot": 1})
    for _ in range(6):
        decided = world.turn(12, 1, seconds=PATIENCE_S / 2)
    assert decided.starts == () and len(world.autoscaler.asked[-1]) == 4


def test_a_job_with_labels_waits_for_nodes_of_a_type_that_has_them(tmp_path):
    labelled = {"resources": {"CPU": 8, "GPU": 4}, "max_workers": 1, "labels": {"zone": "b"}}
    world = World(tmp_path, {"available_node_types": {"gpu": TYPES["available_node_types"]["gpu"], "there": labelled}})
    demand = Demand(num_workers=2, cpu_units=CPU_UNITS, gpus=1, labels=(("zone", "b"),))
    job = Job(id="a", demand=demand, submitted_s=0.0, queued_s=0.0)
    view = world.provisioner.extended(ClusterView(nodes=tuple(world.nodes)))
    decided = plan_ahead(view, (job,), (), Usage(), world.now, Policy())
    world.provisioner.heard(decided, view, world.now)
    world.provisioner.step(world.now)
    ((asked,),) = world.autoscaler.asked
    assert asked.selector == {"ray.io/node-id": "!in(aa)", "zone": "b"}


def test_the_file_is_read_when_it_changes_and_the_last_good_one_holds(world, caplog):
    world.turn(12)
    world.path.write_text("available_node_types: {gpu: {}}")
    os.utime(world.path, (1, 1))
    world.turn(12)
    assert "gpu.resources=None is not possible" in caplog.text and world.provisioner.scales
    world.path.write_text(yaml.safe_dump({"available_node_types": {"gpu": {"resources": {"CPU": 8, "GPU": 4}, "max_workers": 1}}}))
    os.utime(world.path, (2, 2))
    assert world.turn(12).asks == () and world.autoscaler.asked[-1] == ()


def test_where_there_is_no_file_nothing_is_ever_asked(tmp_path):
    world = World(tmp_path)
    world.path.unlink()
    assert world.turn(12).asks == () and world.autoscaler.asked == [] and not world.provisioner.scales


def test_a_controller_that_leaves_takes_its_demand_back(world):
    world.turn(12)
    world.provisioner.close()
    assert world.autoscaler.asked[-1] == ()


def test_the_time_that_a_job_waits_for_nodes_begins_once_in_each_wait():
    first = asked_since(Progress(), 10.0, False, 20.0)
    assert (first.nodes_asked_s, first.nodes_launched_s) == (20.0, 0.0)
    assert asked_since(first, 10.0, False, 30.0) is first
    launched = asked_since(first, 10.0, True, 40.0)
    assert (launched.nodes_asked_s, launched.nodes_launched_s) == (20.0, 40.0)
    assert asked_since(launched, 10.0, True, 50.0) is launched
    assert asked_since(launched, 10.0, False, 50.0) is launched, "one of them has joined before it was seen among Ray's nodes"
    assert asked_since(launched, 45.0, None, 50.0) is launched
    again = asked_since(launched, 45.0, False, 50.0)
    assert again.nodes_asked_s == 50.0 > again.nodes_launched_s, "another wait"
