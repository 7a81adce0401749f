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
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from harness import TESTS, Sandbox
from ray.autoscaler.node_provider import NodeProvider
from ray.autoscaler.tags import NODE_KIND_HEAD, TAG_RAY_NODE_KIND, TAG_RAY_USER_NODE_TYPE
from ray_nodes import RayNodes, end, named, new_id, raylet_command
from supervision_box import QUICK_HEALTH_CHECKS

HEAD = "head"
PREEMPTION = 2
"""Of Ray's reasons for a drain."""


def identity(node_id: str, node_type: str) -> dict[str, str]:
    """By these the autoscaler knows its nodes again."""
    return {**named(node_id), "RAY_CLOUD_INSTANCE_ID": node_id, "RAY_NODE_TYPE_NAME": node_type}


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
                where = f"--address={self.provider_config['address']}"
                command = raylet_command(self._folder / f"n{number}", resources, f"host{number}", where)
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


class ScalingCluster(RayNodes):
    """A head without CPUs, and an autoscaler that may start `max_nodes` nodes with these `resources`."""

    def __init__(self, sandbox: Sandbox, resources: dict[str, int], max_nodes: int, idle_s: float) -> None:
        self._offered, self._max_nodes, self._idle_s = resources, max_nodes, idle_s
        sandbox.environment |= {
            **QUICK_HEALTH_CHECKS, "PYTHONPATH": f"{TESTS / 'pretended_gpus'}:{TESTS}", "RAY_enable_autoscaler_v2": "1",
            "AUTOSCALER_UPDATE_INTERVAL_S": "1",
        }  # fmt: skip
        super().__init__(sandbox, {"CPU": 0})

    def start_head(self, node_id: str = "", more: Mapping[str, str] | None = None) -> str:
        """And its autoscaler."""
        head_id = node_id or new_id()
        config = self.folder / "autoscaler.yaml"
        config.write_text(yaml.safe_dump(self._config(head_id)))
        self.sandbox.home.root.mkdir(parents=True, exist_ok=True)
        self.sandbox.home.node_types.symlink_to(config)
        super().start_head(head_id, {**identity(head_id, HEAD), **(more or {})})
        monitor = [
            sys.executable, "-m", "ray.autoscaler.v2.monitor", f"--gcs-address={self.address}", f"--autoscaling-config={config}",
            f"--logs-dir={self.folder}",
        ]  # fmt: skip
        self._monitor = self.start("monitor", monitor, {})
        return head_id

    def _config(self, head_id: str) -> dict[str, Any]:
        return {
            "cluster_name": "test", "max_workers": self._max_nodes, "idle_timeout_minutes": self._idle_s / 60, "head_node_type": HEAD,
            "provider": {
                "type": "external", "module": "raylet_provider.RayletProvider", "use_node_id_as_ip": True, "disable_node_updaters": True,
                "disable_launch_config_check": True, "folder": str(self.folder), "address": self.address, "head_id": head_id,
            },
            "auth": {}, "file_mounts": {}, "cluster_synced_files": [], "initialization_commands": [],
            **{f"{kind}setup_commands": [] for kind in ("", "head_", "worker_")},
            **{f"{kind}_start_ray_commands": [] for kind in ("head", "worker")},
            "available_node_types": {
                HEAD: {"resources": {"CPU": 0}, "node_config": {}, "min_workers": 0, "max_workers": 0},
                "gpu": {"resources": self._offered, "node_config": {}, "min_workers": 0, "max_workers": self._max_nodes},
            },
        }  # fmt: skip

    def drain(self, node_id: str, deadline_s: float) -> None:
        from ray._raylet import GcsClient

        deadline_ms = int((time.time() + deadline_s) * 1000)
        taken, why = GcsClient(address=self.address).drain_node(node_id, PREEMPTION, "a test", deadline_ms)
        assert taken, why

    def close(self) -> None:
        """The autoscaler first, or it would start what is ended."""
        file = self.folder / "started.jsonl"
        end([self._monitor.pid])
        end([json.loads(line)["pid"] for line in file.read_text().splitlines()] if file.exists() else [])
        super().close()
