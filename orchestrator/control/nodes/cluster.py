"""Ray's nodes as the scheduler sees them. Imports Ray: set the environment first."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

import ray
from ray._private.state import state as ray_state
from ray._raylet import GcsClient  # type: ignore[attr-defined]

from orchestrator.control.scheduler import ClusterView
from orchestrator.control.scheduler.model import CPU_UNITS, Node
from orchestrator.errors import ClusterError

_PROBE_LIMIT_S = 15.0
NODE_TYPE_LABEL, NODE_ID_LABEL = "ray.io/node-group", "ray.io/node-id"


def observe() -> ClusterView:
    """All nodes that live, in order of their ids. May wait for Ray: not for the controller's loop."""
    draining = ray_state.get_draining_nodes()
    nodes = [_node(row, draining.get(row["NodeID"])) for row in ray.nodes() if row["Alive"]]
    return ClusterView(nodes=tuple(sorted(nodes, key=lambda node: node.id)))


def wait_for_ray(address: str, limit_s: float) -> None:
    """Until Ray's head answers and has a node. Raises ClusterError at once for a wrong token, or when `limit_s` is over."""
    deadline = time.monotonic() + limit_s
    while not _listens(address):
        _check_deadline(deadline, f"nothing listens at {address}", limit_s)
        time.sleep(0.05)
    while not _has_node(address):
        _check_deadline(deadline, f"Ray at {address} has no node", limit_s)
        time.sleep(0.05)


def _node(row: Mapping[str, Any], drain_deadline_ms: int | None) -> Node:
    """`drain_deadline_ms`: None for a node that is not draining, 0 for one that names no deadline."""
    resources = row["Resources"]
    return Node(
        id=row["NodeID"], host=row.get("NodeManagerHostname", ""), cpu_units=round(resources.get("CPU", 0) * CPU_UNITS),
        gpus=int(resources.get("GPU", 0)), draining=drain_deadline_ms is not None,
        drain_deadline_s=drain_deadline_ms / 1000 if drain_deadline_ms else None, type=row["Labels"].get(NODE_TYPE_LABEL, ""),
        labels=tuple(sorted((key, value) for key, value in row["Labels"].items() if key != NODE_ID_LABEL)),
    )  # fmt: skip


def _listens(address: str) -> bool:
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=1.0).close()
    except OSError:
        return False
    return True


def _has_node(address: str) -> bool:
    nodes = _within(lambda: GcsClient(address=address).get_all_node_info(timeout=_PROBE_LIMIT_S), address)
    return any(info.state == 0 for info in nodes.values())  # 0: GcsNodeInfo.ALIVE


def _within(call: Callable[[], Any], address: str) -> Any:
    """The answer of a call that may block for long where something else than Ray listens."""
    answer: dict[str, Any] = {}

    def ask() -> None:
        try:
            answer["value"] = call()
        except Exception as error:  # noqa: BLE001 - handed to the caller
            answer["error"] = error

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(_PROBE_LIMIT_S)
    if "value" in answer:
        return answer["value"]
    why = answer.get("error", f"no answer within {_PROBE_LIMIT_S:.0f} s")
    raise ClusterError(f"what listens at {address} does not let us in as a Ray cluster: {why}")


def _check_deadline(deadline: float, what: str, limit_s: float) -> None:
    if time.monotonic() > deadline:
        raise ClusterError(f"{what} (waited {limit_s:.0f} s)")
