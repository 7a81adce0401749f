"""Ray's autoscaler (v2). Imports Ray: set the environment first. The only module that asks it for anything."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from ray.autoscaler.sdk import request_resources
from ray.autoscaler.v2.schema import LaunchRequest
from ray.autoscaler.v2.sdk import get_cluster_status
from ray.autoscaler.v2.utils import is_autoscaler_v2

from orchestrator.control.nodes.provisioning import Bundle, Launches
from orchestrator.errors import ClusterError

CALL_LIMIT_S = 10
MAX_WORDS = 300


class RayAutoscaler:
    """Calls run on the threads of `pool`."""

    def __init__(self, address: str, pool: ThreadPoolExecutor) -> None:
        self._address, self._pool = address, pool

    def ask(self, bundles: Sequence[Bundle]) -> Future[None]:
        """Each call replaces the last, of anybody in the whole cluster; what was asked holds until then, whoever lives."""
        return self._pool.submit(_ask, tuple(bundles))

    def look(self) -> Future[Launches]:
        return self._pool.submit(_look, self._address)


def _ask(bundles: Sequence[Bundle]) -> None:
    if bundles and not is_autoscaler_v2():
        raise ClusterError("Ray's autoscaler is of version 1, which knows no labels; start the head with RAY_enable_autoscaler_v2=1")
    resources = [{"CPU": bundle.cpus, **({"GPU": bundle.gpus} if bundle.gpus else {})} for bundle in bundles]
    request_resources(bundles=resources, bundle_label_selectors=[dict(bundle.selector) for bundle in bundles])


def _look(address: str) -> Launches:
    status = get_cluster_status(address, timeout=CALL_LIMIT_S)
    starting = Counter(node.ray_node_type_name for node in status.pending_nodes)
    return Launches(starting=starting, failures=tuple(dict.fromkeys(_failure(launch) for launch in status.failed_launches)))


def _failure(launch: LaunchRequest) -> str:
    why = (launch.details or "Ray's monitor.log says why").strip()[:MAX_WORDS]
    return f"a node of type {launch.ray_node_type_name} could not be started: {why}"


