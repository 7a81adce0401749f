"""A node provider of Ray's autoscaler whose nodes are real raylets on this machine, and a cluster that it makes grow and shrink.

Every raylet has a folder and ports of its own, is known by its pid, and is ended by it.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any
from uuid import uuid4

import psutil
import yaml
from harness import TESTS, Sandbox
from ray.autoscaler.node_provider import NodeProvider
from ray.autoscaler.tags import NODE_KIND_HEAD, TAG_RAY_NODE_KIND, TAG_RAY_USER_NODE_TYPE
from supervision_box import QUICK_HEALTH_CHECKS

from orchestrator.control.keeper import free_port

HEAD = "head"
END_LIMIT_S = 20.0


def raylet_command(folder: Path, resources: dict[str, int], host: str, *more: str) -> list[str]:
    return [
        sys.executable, "-m", "ray.scripts.scripts", "start", "--block", f"--num-cpus={resources['CPU']}",
        f"--num-gpus={resources.get('GPU', 0)}", f"--labels=host={host}", "--node-ip-address=127.0.0.1", "--object-store-memory=80000000",
        "--min-worker-port=0", "--max-worker-port=0", "--dashboard-agent-listen-port=0", f"--temp-dir={folder}", "--disable-usage-stats",
        *more,
    ]  # fmt: skip


def identity(node_id: str, node_type: str) -> dict[str, str]:
    """By these the autoscaler knows its nodes again."""
    return {"RAY_OVERRIDE_NODE_ID_FOR_TESTING": node_id, "RAY_CLOUD_INSTANCE_ID": node_id, "RAY_NODE_TYPE_NAME": node_type}


def new_id() -> str:
    """56 hexadecimal digits, as Ray's own."""
    return (uuid4().hex + uuid4().hex)[:56]


class RayletProvider(NodeProvider):
    """`provider_config`: `folder` (of the nodes), `address` (of the head), `head_id`."""

    def __init__(self, provider_config: dict[str, Any], cluster_name: str) -> None:
        super().__init__(provider_config, cluster_name)
        self._folder = Path(provider_config["folder"])
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._tags = {provider_config["head_id"]: {TAG_RAY_NODE_KIND: NODE_KIND_HEAD, TAG_RAY_USER_NODE_TYPE: HEAD}}
        self._lock = threading.RLock()

    @staticmethod
    def bootstrap_config(cluster_config):
        return cluster_config

    def non_terminated_nodes(self, tag_filters):
        with self._lock:
            living = [node for node in self._tags if self.is_running(node)]
            return [node for node in living if all(self._tags[node].get(name) == value for name, value in tag_filters.items())]

    def is_running(self, node_id):
        return node_id == self.provider_config["head_id"] or self._processes[node_id].poll() is None

    def is_terminated(self, node_id):
        return not self.is_running(node_id)

    def node_tags(self, node_id):
        with self._lock:
            return dict(self._tags[node_id])

    def set_node_tags(self, node_id, tags):
        with self._lock:
            self._tags[node_id].update(tags)

    def internal_ip(self, node_id):
        return node_id

    external_ip = internal_ip

    def create_node_with_resources_and_labels(self, node_config, tags, count, resources, labels):
        with self._lock:
            for _ in range(count):
                node_id, number = new_id(), len(self._tags)
                command = raylet_command(
                    self._folder / f"n{number}", resources, f"host{number}", f"--address={self.provider_config['address']}"
                )  # fmt: skip
                environment = {**os.environ, **identity(node_id, tags[TAG_RAY_USER_NODE_TYPE])}
                with (self._folder / f"n{number}.log").open("wb") as log:
                    self._processes[node_id] = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
                self._tags[node_id] = dict(tags)
                with (self._folder / "started.jsonl").open("a") as file:
                    file.write(json.dumps({"node": node_id, "pid": self._processes[node_id].pid}) + "\n")

    def terminate_node(self, node_id):
        self._processes[node_id].send_signal(signal.SIGTERM)

    def terminate_nodes(self, node_ids):
        for node_id in node_ids:
            self.terminate_node(node_id)


class ScalingCluster:
    """A head without CPUs, and an autoscaler that may start `max_nodes` nodes with these `resources`."""

    def __init__(self, sandbox: Sandbox, resources: dict[str, int], max_nodes: int, idle_s: float) -> None:
        self.sandbox, self.folder = sandbox, sandbox.root
        port, head_id = free_port(), new_id()
        self.address = f"127.0.0.1:{port}"
        sandbox.environment |= {
            **QUICK_HEALTH_CHECKS, "PYTHONPATH": f"{TESTS / 'pretended_gpus'}:{TESTS}", "RAY_enable_autoscaler_v2": "1",
            "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0", "AUTOSCALER_UPDATE_INTERVAL_S": "1",
        }  # fmt: skip
        self._config = {
            "cluster_name": "test", "max_workers": max_nodes, "idle_timeout_minutes": idle_s / 60, "head_node_type": HEAD,
            "provider": {
                "type": "external", "module": "raylet_provider.RayletProvider", "use_node_id_as_ip": True, "disable_node_updaters": True,
                "disable_launch_config_check": True, "folder": str(self.folder), "address": self.address, "head_id": head_id,
            },
            "auth": {}, "file_mounts": {}, "cluster_synced_files": [], "initialization_commands": [],
            **{f"{kind}setup_commands": [] for kind in ("", "head_", "worker_")},
            **{f"{kind}_start_ray_commands": [] for kind in ("head", "worker")},
            "available_node_types": {
                HEAD: {"resources": {"CPU": 0}, "node_config": {}, "min_workers": 0, "max_workers": 0},
                "gpu": {"resources": resources, "node_config": {}, "min_workers": 0, "max_workers": max_nodes},
            },
        }  # fmt: skip
        config = self.folder / "autoscaler.yaml"
        config.write_text(yaml.safe_dump(self._config))
        sandbox.home.root.mkdir(parents=True, exist_ok=True)
        sandbox.home.node_types.symlink_to(config)
        head = raylet_command(
            self.folder / "head", {"CPU": 0}, "head", "--head", f"--port={port}", "--include-dashboard=false", "--no-monitor"
        )  # fmt: skip
        self._started = [self._start("head", head, identity(head_id, HEAD))]
        sandbox.wait_until(lambda: len(self.nodes()) == 1, "the head")
        monitor = [
            sys.executable, "-m", "ray.autoscaler.v2.monitor", f"--gcs-address={self.address}", f"--autoscaling-config={config}",
            f"--logs-dir={self.folder}",
        ]  # fmt: skip
        self._started.append(self._start("monitor", monitor, {}))

    def nodes(self) -> dict[str, Any]:
        """Those that live, by Ray's id."""
        from ray._raylet import GcsClient

        try:
            found = GcsClient(address=self.address).get_all_node_info(timeout=5.0)
        except Exception:  # noqa: BLE001 - it is not up yet
            return {}
        return {node_id.hex(): info for node_id, info in found.items() if info.state == 0}

    def workers(self) -> list[str]:
        return [node_id for node_id, info in self.nodes().items() if not info.is_head_node]

    def drain(self, node_id: str, deadline_s: float) -> None:
        command = [
            sys.executable, "-m", "ray.scripts.scripts", "drain-node", f"--address={self.address}", f"--node-id={node_id}",
            "--reason=DRAIN_NODE_REASON_PREEMPTION", "--reason-message=a test", f"--deadline-remaining-seconds={deadline_s:g}",
        ]  # fmt: skip
        done = subprocess.run(command, env=self.sandbox.environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr

    def close(self) -> None:
        """The autoscaler first, or it would start what is ended."""
        started = (self.folder / "started.jsonl").read_text().splitlines() if (self.folder / "started.jsonl").exists() else []
        _end([self._started[-1].pid])
        _end([json.loads(line)["pid"] for line in started])
        _end([process.pid for process in self._started])

    def _start(self, name: str, command: list[str], more: dict[str, str]) -> subprocess.Popen[bytes]:
        with (self.folder / f"{name}.log").open("wb") as log:
            return subprocess.Popen(command, env={**self.sandbox.environment, **more}, stdout=log, stderr=log, start_new_session=True)


def _end(pids: list[int]) -> None:
    processes = []
    for pid in pids:
        try:
            processes.append(psutil.Process(pid))
            processes[-1].terminate()
        except psutil.NoSuchProcess:
            continue
    psutil.wait_procs(processes, timeout=END_LIMIT_S)
