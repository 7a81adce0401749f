"""The settings of a simulation and of a policy: composed by Hydra, checked strictly."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pytest

from orchestrator.config import load_simulation
from orchestrator.control.scheduler.model import Policy, Tenant
from orchestrator.control.scheduler.settings import MODES, check_tenants, policy_of
from orchestrator.errors import ConfigError
from orchestrator.simulation.model import Shape, World
from orchestrator.simulation.settings import WorldSettings


def refusal(*overrides: str, config_dir: Path | None = None) -> str:
    with pytest.raises(ConfigError) as caught:
        settings = load_simulation(overrides, config_dir)
        settings.world(settings.cluster.all_shapes)
    return str(caught.value)


# what is right


def test_what_is_said_nothing_of_is_as_the_model_has_it() -> None:
    settings = load_simulation(["cluster.nodes=2"])
    assert settings.world(settings.cluster.all_shapes) == World(shapes=(Shape(nodes=2, gpus_per_node=8),))


def test_every_setting_of_the_world_can_be_set() -> None:
    assert {item.name for item in fields(WorldSettings)} == {item.name for item in fields(World)} - {"shapes"}
    flags = [f"simulation.{item.name}={number}" for number, item in enumerate(fields(WorldSettings)) if item.name != "speedup_exponent"]
    settings = load_simulation([*flags, "simulation.speedup_exponent=0.5"])
    assert settings.simulation == WorldSettings(
        preemption_loss_s=0, save_interval_s=1, node_mtbf_s=2, node_repair_s=3, speedup_exponent=0.5, seed=5
    )  # fmt: skip


def test_nodes_may_be_of_several_kinds() -> None:
    kinds = "cluster.shapes=[{nodes:2,gpus_per_node:8,speed:1.5,cost_per_gpu_hour:3},{nodes:4,gpus_per_node:4}]"
    shapes = load_simulation([kinds]).cluster.all_shapes
    assert shapes == (Shape(nodes=2, gpus_per_node=8, speed=1.5, cost_per_gpu_hour=3.0), Shape(nodes=4, gpus_per_node=4))


@pytest.mark.parametrize("mode", MODES)
def test_a_shipped_policy_is_named_by_its_mode(mode: str) -> None:
    assert load_simulation([f"scheduler={mode}"]).scheduler.mode == mode


def test_a_setting_that_a_policys_file_leaves_out_is_set_all_the_same() -> None:
    assert load_simulation(["scheduler=fifo", "scheduler.gain_factor=3"]).scheduler == Policy(mode="fifo", gain_factor=3.0)


def test_tenants_are_added_by_their_names() -> None:
    flags = ["scheduler.tenants.lab.weight=2", "scheduler.tenants.lab.quota=64", "+scheduler.tenants.b-2.jobs_per_user=1"]
    assert load_simulation(flags).scheduler.tenants == {"lab": Tenant(weight=2.0, quota=64), "b-2": Tenant(jobs_per_user=1)}


def test_a_policy_of_the_users_own(tmp_path: Path) -> None:
    (tmp_path / "scheduler").mkdir()
    (tmp_path / "scheduler" / "mine.yaml").write_text("mode: batch\nround_s: 5\ntenants: {lab: {quota: 8}}\n")
    policy = load_simulation(["scheduler=mine", "scheduler.round_s=7"], tmp_path).scheduler
    assert policy == Policy(mode="batch", round_s=7.0, tenants={"lab": Tenant(quota=8)})
    assert refusal("scheduler=mime", config_dir=tmp_path).endswith("allowed is batch, fifo, preemptive, mine. Did you mean 'mine'?")


# what is wrong


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("scheduler=fiffo", "scheduler=fiffo is not possible: allowed is batch, fifo, preemptive. Did you mean 'fifo'?"),
        ("scheduler.max_wait=5", "scheduler.max_wait is no setting. "), ("scheduler.max_wait=5", " Did you mean 'max_wait_s'?"),
        ("+scheduler.max_wait=5", " Did you mean 'max_wait_s'?"), ("cluster.node=5", " Did you mean 'cluster.nodes'?"),
        ("training.max_steps=5", "training.max_steps is no setting."), ("workload=gpt", "workload is no setting. Groups: scheduler."),
        ("scheduler=fifo,batch", "scheduler=fifo,batch names several values: `--compare` takes several policies; "),
        ("fifo", "'fifo' is no override: allowed is key=value, for example cluster.nodes=72."),
        ("cluster.nodes=many", "cluster.nodes=many is not possible: allowed is a whole number."),
        ("cluster.nodes=-1", "cluster.nodes=-1"), ("cluster.gpus_per_node=0", "cluster.gpus_per_node=0"),
        ("cluster.speed=0", "cluster.speed=0"),
        ("cluster.shapes=[{nodes:1,gpus_per_node:8}]", "cluster.nodes=4 and cluster.shapes exclude each other: give one of them."),
        ("simulation.node_mtbf_s=-1", "node_mtbf_s=-1"), ("simulation.speedup_exponent=2", "speedup_exponent=2"),
        ("scheduler.mode=lifo", "scheduler.mode=lifo is not possible: allowed is fifo, batch, preemptive. Did you mean 'fifo'?"),
        ("scheduler.round_s=0", "scheduler.round_s=0 is not possible: allowed is a number above 0."),
        ("scheduler.max_wait_s=-1", "scheduler.max_wait_s=-1 is not possible: allowed is a number of at least 0."),
        ("scheduler.max_wait_s=soon", "scheduler.max_wait_s=soon is not possible: allowed is a number."),
        ("scheduler.levels=[1,1]", "scheduler.levels=[1,1] is not possible: allowed are numbers above 0, each above the one before."),
        ("scheduler.levels=[0,1]", "scheduler.levels=[0,1] is not possible"), ("scheduler.levels=3", "scheduler.levels=3 is not possible"),
        ("scheduler.tenants.lab=5", "scheduler.tenants.lab=5 is not possible: scheduler.tenants.lab is a group of settings: weight, "),
        ("scheduler.tenants.lab.qouta=5", "scheduler.tenants.lab.qouta is no setting. "),
        ("scheduler.tenants.lab.qouta=5", "Did you mean 'quota'?"),
        ("scheduler.tenants.lab.quota=0", "scheduler.tenants.lab.quota=0 is not possible: allowed is a whole number of at least 1, "),
        ("scheduler.tenants.lab.quota=1.5", "scheduler.tenants.lab.quota=1.5 is not possible: allowed is a whole number."),
        ("scheduler.tenants.lab.weight=0", "scheduler.tenants.lab.weight=0 is not possible: allowed is a number above 0."),
    ],
)  # fmt: skip
def test_what_is_wrong_is_refused_by_its_name(override: str, said: str) -> None:
    assert said in refusal("cluster.nodes=4", override)


def test_a_file_with_an_unknown_key_is_refused(tmp_path: Path) -> None:
    (tmp_path / "scheduler").mkdir()
    (tmp_path / "scheduler" / "mine.yaml").write_text("mode: batch\nround: 5\n")
    said = refusal("scheduler=mine", config_dir=tmp_path)
    assert said.startswith("scheduler.round is no setting. Known here: mode, tenants, ") and said.endswith("Did you mean 'round_s'?")


def test_tenants_must_be_a_mapping() -> None:
    with pytest.raises(ConfigError, match=r"scheduler.tenants=\['lab'\] is not possible: allowed is a mapping"):
        policy_of({"tenants": ["lab"]})


def test_a_tenant_that_is_not_there_is_refused_with_the_nearest() -> None:
    policy = Policy(tenants={"lab": Tenant()})
    check_tenants(policy, ["lab", "", "field"])
    with pytest.raises(ConfigError) as caught:
        check_tenants(policy, ["labs", "", "field"])
    assert str(caught.value) == (
        "scheduler.tenants.lab is not possible: there is no tenant of that name. Known: field, labs. Did you mean 'labs'?"
    )
    with pytest.raises(ConfigError, match="Known: none"):
        check_tenants(policy, [""])
