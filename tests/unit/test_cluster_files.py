"""The launch files, as far as a machine without the clouds can check them."""

from __future__ import annotations

import copy
import functools
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from kubernetes.client import models
from patience import LIMIT_S, wait_until
from pydantic import ValidationError

from orchestrator.control.api import cluster as routes
from orchestrator.control.pulse import START_S

CLUSTER = Path(__file__).parents[2] / "cluster"
STORAGE = CLUSTER.parent / "orchestrator" / "storage"
SCRIPTS = sorted(CLUSTER.glob("**/*.sh"))
KINDS = {
    "ConfigMap": models.V1ConfigMap, "Deployment": models.V1Deployment, "Namespace": models.V1Namespace, "Secret": models.V1Secret,
    "PersistentVolumeClaim": models.V1PersistentVolumeClaim, "Service": models.V1Service, "ServiceAccount": models.V1ServiceAccount,
    "StatefulSet": models.V1StatefulSet,
}  # fmt: skip
"""The classes of Kubernetes' own client take no unknown field, no wrong type, and want what must be there."""
MANIFESTS = sorted(path for path in (CLUSTER / "kuberay").glob("*.yaml") if path.name != "kustomization.yaml")
ACTIONS = {
    "get_object": "s3:GetObject", "head_object": "s3:GetObject", "put_object": "s3:PutObject", "upload_fileobj": "s3:PutObject",
    "create_multipart_upload": "s3:PutObject", "upload_part": "s3:PutObject", "complete_multipart_upload": "s3:PutObject",
    "abort_multipart_upload": "s3:AbortMultipartUpload", "delete_object": "s3:DeleteObject", "list_objects_v2": "s3:ListBucket",
    "list_multipart_uploads": "s3:ListBucketMultipartUploads",
}  # fmt: skip
"""What AWS wants to be allowed for each of S3's operations."""


def documents(name: str) -> list[dict]:
    return list(yaml.safe_load_all((CLUSTER / "kuberay" / name).read_text()))


@functools.cache
def ray_cluster_schema() -> dict:
    """The CRD's own, which lets no unknown field through."""
    return _closed(yaml.safe_load(Path(__file__).with_name("ray_cluster_schema.yaml").read_text()))


def _closed(schema: Any) -> Any:
    if isinstance(schema, list):
        return [_closed(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    named = schema.get("type") == "object" and "properties" in schema
    return {name: _closed(part) for name, part in schema.items()} | ({"additionalProperties": False} if named else {})


def launcher() -> dict:
    return yaml.safe_load((CLUSTER / "aws.yaml").read_text())


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_shell_scripts_are_clean(script: Path) -> None:
    for command in (["bash", "-n", script], [Path(sys.executable).with_name("shellcheck"), "--severity=style", script]):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr


def test_the_dockerfile_is_clean_and_copies_what_is_there() -> None:
    hadolint = Path(sys.executable).with_name("hadolint")
    done = subprocess.run([hadolint, CLUSTER / "Dockerfile"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    ignored = (CLUSTER / "Dockerfile.dockerignore").read_text().splitlines()
    for copied in re.findall(r"^COPY (.*) \S+$", (CLUSTER / "Dockerfile").read_text(), re.MULTILINE):
        for name in copied.split():
            assert (CLUSTER.parent / name).exists(), name
            assert f"!{name}" in ignored or f"!{Path(name).parent}/*.sh" in ignored, f"{name} is not sent to the builder"


# AWS


def test_spot_and_on_demand_differ_in_what_they_cost_only() -> None:
    kinds = launcher()["available_node_types"]
    spot, on_demand = copy.deepcopy(kinds["gpu-spot"]), kinds["gpu-on-demand"]
    assert spot["node_config"].pop("InstanceMarketOptions") == {"MarketType": "spot"}
    assert spot["node_config"] == on_demand["node_config"] and spot["resources"] == on_demand["resources"]
    assert spot.get("priority", 0) > on_demand.get("priority", 0)
    assert launcher()["max_workers"] == spot["max_workers"] + on_demand["max_workers"]


@pytest.mark.parametrize("part", ["setup_commands", "head_start_ray_commands", "worker_start_ray_commands", "initialization_commands"])
def test_the_launchers_commands_are_shell(part: str) -> None:
    for command in launcher()[part]:
        done = subprocess.run(["bash", "-n", "-c", command], capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{command}\n{done.stderr}"


KEPT_UP = [command for part in ("head", "worker") for command in launcher()[f"{part}_start_ray_commands"] if "keep_up.sh" in command]
STUB = """#!/usr/bin/env bash
echo "$(basename "$0") $*" >>"$ORCHESTRATOR_HOME/ran"
[ "$(wc -l <"$ORCHESTRATOR_HOME/ran")" -gt 1 ] && read -r <"$ORCHESTRATOR_HOME/end"
"""
"""Fails at first; then it runs until it is told to end, which is well."""


@pytest.fixture
def node(tmp_path):
    """Runs a command as Ray's launcher does, on a machine where the services are stubs."""
    stubs, home = tmp_path / "stubs", tmp_path / "home"
    stubs.mkdir()
    home.mkdir()
    os.mkfifo(home / "end")
    (stubs / "keep_up.sh").symlink_to(CLUSTER / "keep_up.sh")
    for name in ("mlflow", "orchestrator", "spot_notice.sh"):
        (stubs / name).write_text(STUB)
        (stubs / name).chmod(0o755)
    (tmp_path / ".bash_profile").write_text(f"PATH={stubs}:$PATH\n")
    environment = {**os.environ, "HOME": str(tmp_path), "ORCHESTRATOR_HOME": str(home), "RAY_HEAD_IP": "10.0.0.1", "PAUSE_S": "0.01"}

    def run(command: str) -> subprocess.CompletedProcess[str]:
        line = f"source ~/.bashrc; export OMP_NUM_THREADS=1 PYTHONWARNINGS=ignore && ({command})"
        asked = ["bash", "-c", " ".join(["bash", "--login", "-c", "-i", shlex.quote(line)])]
        return subprocess.run(asked, env=environment, capture_output=True, text=True, check=False, timeout=LIMIT_S, start_new_session=True)

    yield run, home


@pytest.mark.parametrize("command", KEPT_UP, ids=lambda command: re.search(r"keep_up.sh (\w+)", command)[1])
def test_what_the_launcher_starts_is_started_once_and_again_when_it_fails(node, command: str) -> None:
    run, home = node
    assert run(command).returncode == 0
    wait_until(lambda: (home / "ran").exists() and len((home / "ran").read_text().splitlines()) > 1, f"{home / 'logs'}/*.log")
    again = run(command)
    assert again.returncode == 0 and "is kept up already" in again.stdout
    (home / "end").write_text("\n")  # waits for the reader
    assert len(set((home / "ran").read_text().splitlines())) == 1, "the same each time"
    (log,) = (home / "logs").glob("*.log")
    assert "ended with 1: again in 0.01 s" in log.read_text()


def test_the_launcher_keeps_up_all_that_serves() -> None:
    assert [re.search(r"keep_up.sh (\w+)", command)[1] for command in KEPT_UP] == ["mlflow", "serve", "spot_notice"]


def test_the_bucket_policy_allows_what_the_storage_layer_does_and_no_more() -> None:
    used = set()
    for path in STORAGE.glob("*.py"):
        source = path.read_text()
        used |= set(re.findall(r"_client\.(?!meta|get_paginator|generate_presigned_url)(\w+)\(", source))
        used |= set(re.findall(r"get_paginator\(\"(\w+)\"\)", source))
        used |= set(re.findall(r"(?:\.put, |\.put\(|_answer\()\"(\w+)\"", source))  # those of presigned URLs
    assert used <= set(ACTIONS), f"which action is that? {used - set(ACTIONS)}"
    needed = {ACTIONS[name] for name in used}
    statements = json.loads((CLUSTER / "aws-s3-policy.json").read_text())["Statement"]
    of_jobs = [statement for statement in statements if not statement["Sid"].endswith("MLflow")]
    assert {action for statement in of_jobs for action in statement["Action"]} == needed
    for statement in statements:
        assert statement["Effect"] == "Allow" and statement["Condition"]["Bool"] == {"aws:SecureTransport": "true"}
        assert not [action for action in statement["Action"] if "*" in action]
        assert all(arn.startswith("arn:aws:iam::") and "*" not in arn for arn in statement["Principal"]["AWS"])
        on_objects = "/" in statement["Resource"]
        assert statement["Resource"].endswith("/*") if on_objects else "*" not in statement["Resource"]
        assert all(action.startswith("s3:List") != on_objects for action in statement["Action"])


def test_the_heads_policy_names_every_action_and_ends_only_the_clusters_own() -> None:
    config = launcher()
    statements = json.loads((CLUSTER / "aws-head-policy.json").read_text())["Statement"]
    by_action: dict[str, list[dict]] = {}
    for statement in statements:
        for action in statement["Action"]:
            assert "*" not in action
            by_action.setdefault(action, []).append(statement)
        if statement["Resource"] == "*":
            assert all(action.startswith("ec2:Describe") for action in statement["Action"])
    own = {"aws:ResourceTag/ray-cluster-name": config["cluster_name"]}
    assert [statement["Condition"]["StringEquals"] for statement in by_action["ec2:TerminateInstances"]] == [own]
    (passed,) = by_action["iam:PassRole"]
    assert passed["Resource"].endswith("role/orchestrator-worker")
    (started,) = [one for one in by_action["ec2:RunInstances"] if "Condition" in one]
    types = {kind["node_config"]["InstanceType"] for name, kind in config["available_node_types"].items() if name != "head"}
    assert types == {started["Condition"]["StringEquals"]["ec2:InstanceType"]}


# KubeRay


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.name)
def test_manifests_are_what_kubernetes_takes(path: Path) -> None:
    for document in documents(path.name):
        if document["kind"] != "RayCluster":
            KINDS[document["kind"]].model_validate(document)
            continue
        assert document["apiVersion"] == "ray.io/v1"
        jsonschema.validate(document, ray_cluster_schema())
        spec = document["spec"]
        for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
            models.V1PodTemplateSpec.model_validate(group["template"])


@pytest.mark.parametrize(
    "change, said",
    [
        ({"rayVersion": 2}, "2 is not of type 'string'"),
        ({"enableInTreeAutoscaler": True}, "'enableInTreeAutoscaler' was unexpected"),
        ({"authOptions": {"mode": "on"}}, "'on' is not one of"),
    ],
)
def test_what_kuberay_would_not_take_is_found(change: dict, said: str) -> None:
    (document,) = (document for path in MANIFESTS for document in documents(path.name) if document["kind"] == "RayCluster")
    document["spec"] |= change
    with pytest.raises(jsonschema.ValidationError, match=said):
        jsonschema.validate(document, ray_cluster_schema())


@pytest.mark.parametrize(
    "spec, said",
    [
        ({"ports": [{"port": "80"}]}, "valid integer"),
        ({"port": []}, "Extra inputs are not permitted"),
        ({"ports": [{"name": "http"}]}, "Field required"),
    ],
)
def test_what_kubernetes_would_not_take_is_found(spec: dict, said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        KINDS["Service"].model_validate({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "x"}, "spec": spec})


def test_kustomize_lists_all_manifests_but_the_example_of_secrets() -> None:
    listed = yaml.safe_load((CLUSTER / "kuberay" / "kustomization.yaml").read_text())
    assert {path.name for path in MANIFESTS} - set(listed["resources"]) == {"secrets.example.yaml"}
    images = {container["image"] for container in _containers()}
    assert images - {"postgres:17"} == {image["name"] for image in listed["images"]}


def test_what_manifests_name_of_each_other_is_there() -> None:
    there = {(one["kind"], one["metadata"]["name"]) for path in MANIFESTS for one in documents(path.name)}
    keys = {one["metadata"]["name"]: set(one["stringData"]) for one in documents("secrets.example.yaml")}
    for pod in _pods():
        if "serviceAccountName" in pod:
            assert ("ServiceAccount", pod["serviceAccountName"]) in there
        for volume in pod.get("volumes", ()):
            if claim := volume.get("persistentVolumeClaim"):
                assert ("PersistentVolumeClaim", claim["claimName"]) in there
            if found := volume.get("configMap"):
                assert ("ConfigMap", found["name"]) in there
        volumes = {volume["name"] for volume in pod.get("volumes", ())} | {"data"}
        for container in pod["containers"]:
            assert {mount["name"] for mount in container.get("volumeMounts", ())} <= volumes
            for variable in container.get("env", ()):
                if secret := variable.get("valueFrom", {}).get("secretKeyRef"):
                    assert secret["key"] in keys[secret["name"]]
    for service in ("orchestrator-serve", "orchestrator-mlflow", "orchestrator-postgres"):
        assert ("Service", service) in there


def test_the_controller_is_told_of_the_groups_that_the_autoscaler_has() -> None:
    (told,) = documents("node-types.yaml")
    types = yaml.safe_load(told["data"]["node-types.yaml"])["available_node_types"]
    (cluster,) = documents("raycluster.yaml")
    groups = {}
    for group in cluster["spec"]["workerGroupSpecs"]:
        limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
        resources = {"CPU": int(limits["cpu"]), "GPU": int(limits["nvidia.com/gpu"])}
        groups[group["groupName"]] = {"resources": resources, "max_workers": group["maxReplicas"]}
    assert types == groups


def test_head_and_control_plane_share_the_home_folder_and_the_token() -> None:
    (cluster,) = documents("raycluster.yaml")
    deployment = next(one for one in documents("serve.yaml") if one["kind"] == "Deployment")
    pods = [cluster["spec"]["headGroupSpec"]["template"]["spec"], deployment["spec"]["template"]["spec"]]
    claims = [volume["persistentVolumeClaim"]["claimName"] for pod in pods for volume in pod["volumes"] if volume["name"] == "home"]
    assert claims == ["orchestrator-home"] * 2
    variables = {one["name"]: one for one in pods[1]["containers"][0]["env"]}
    assert variables["RAY_AUTH_TOKEN"]["valueFrom"]["secretKeyRef"]["name"] == cluster["spec"]["authOptions"]["secretName"]
    for pod in (*_ray_pods(cluster), pods[1]):
        (container,) = pod["containers"]
        told = {one["name"]: one for one in container["env"]}
        assert told["RAY_AUTH_MODE"]["value"] == cluster["spec"]["authOptions"]["mode"] == "token"
        assert told["RAY_AUTH_TOKEN"] == variables["RAY_AUTH_TOKEN"]
    assert deployment["spec"]["replicas"] == 1 and deployment["spec"]["strategy"] == {"type": "Recreate"}


def test_the_pod_of_the_service_is_started_anew_when_its_loop_hangs_only() -> None:
    deployment = next(one for one in documents("serve.yaml") if one["kind"] == "Deployment")
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    starting, living = container["startupProbe"], container["livenessProbe"]
    assert starting["httpGet"] == living["httpGet"] == {"path": "/v1/alive", "port": container["ports"][0]["name"]}
    assert starting["periodSeconds"] * starting["failureThreshold"] >= START_S, "what the loop itself may take to its first round"
    assert "/v1/alive" in {route.path for route in routes.router.routes}


def _pods() -> list[dict]:
    found = []
    for path in MANIFESTS:
        for one in documents(path.name):
            if one["kind"] in ("Deployment", "StatefulSet"):
                found.append(one["spec"]["template"]["spec"])
            if one["kind"] == "RayCluster":
                found += _ray_pods(one)
    return found


def _ray_pods(cluster: dict) -> list[dict]:
    spec = cluster["spec"]
    return [group["template"]["spec"] for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"])]


def _containers() -> list[dict]:
    return [container for pod in _pods() for container in pod["containers"]]
