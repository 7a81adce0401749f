"""cluster/aws.yaml in the hands of Ray's own launcher: its schema, and its node provider on a double of AWS."""

from __future__ import annotations

import json
from pathlib import Path

import boto3
import jsonschema
import pytest
import yaml
from moto import mock_aws
from moto.core import DEFAULT_ACCOUNT_ID
from ray.autoscaler._private.aws.config import bootstrap_aws
from ray.autoscaler._private.aws.node_provider import AWSNodeProvider
from ray.autoscaler._private.util import prepare_config, validate_config

CLUSTER = Path(__file__).parents[2] / "cluster"
CONFIG = (CLUSTER / "aws.yaml").read_text()


def test_ray_takes_the_clusters_file() -> None:
    config = prepare_config(yaml.safe_load(CONFIG))
    validate_config(config)
    assert {name for name, kind in config["available_node_types"].items() if kind["max_workers"]} == {"gpu-spot", "gpu-on-demand"}
    wrong = {**config, "idle_timeout": 5}
    with pytest.raises(jsonschema.ValidationError):
        validate_config(wrong)


@pytest.fixture
def aws(monkeypatch, tmp_path):
    """moto's double of AWS with the two instance profiles; yields the launcher's configuration for its account."""
    (tmp_path / ".ssh").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("AWS_PROFILE", raising=False)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    with mock_aws():
        iam = boto3.client("iam", region_name="us-east-1")
        for name in ("orchestrator-head", "orchestrator-worker"):
            iam.create_instance_profile(InstanceProfileName=name)
        yield yaml.safe_load(CONFIG.replace("111122223333", DEFAULT_ACCOUNT_ID))


def test_rays_launcher_starts_and_ends_workers_with_what_the_heads_policy_allows(aws: dict) -> None:
    config = bootstrap_aws(prepare_config(aws))
    provider = AWSNodeProvider(config["provider"], config["cluster_name"])
    called = set()
    for resource in (provider.ec2, provider.ec2_fail_fast):
        resource.meta.client.meta.events.register("before-call.ec2", lambda model, **_: called.add(f"ec2:{model.name}"))
    kind = config["available_node_types"]["gpu-spot"]["node_config"]
    provider.create_node(kind, {"ray-node-type": "worker", "ray-user-node-type": "gpu-spot"}, 1)
    (node,) = provider.non_terminated_nodes({})
    provider.set_node_tags(node, {"ray-node-status": "up-to-date"})
    (found,) = boto3.client("ec2", region_name="us-east-1").describe_instances()["Reservations"][0]["Instances"]
    assert (found["InstanceType"], found["InstanceLifecycle"]) == ("g6.12xlarge", "spot")
    assert found["IamInstanceProfile"]["Arn"].endswith("instance-profile/orchestrator-worker")
    assert {"Key": "ray-cluster-name", "Value": "orchestrator"} in found["Tags"]
    provider.terminate_nodes([node])
    statements = json.loads((CLUSTER / "aws-head-policy.json").read_text())["Statement"]
    allowed = {action for statement in statements for action in statement["Action"]}
    assert {"ec2:RunInstances", "ec2:TerminateInstances"} <= called <= allowed, called - allowed
