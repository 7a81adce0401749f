"""The place of a gang: a detached placement group with one bundle per node, pinned to these nodes and held over all restarts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import ray
from ray.util.placement_group import PlacementGroup, get_placement_group, placement_group, placement_group_table, remove_placement_group

from orchestrator.errors import ClusterError
from orchestrator.paths import Home
from orchestrator.spec import JobSpec

NAMESPACE = "orchestrator"
LEAVE_LIMIT_S = 5.0
"""How long an agent may take to remove what its node keeps in memory, when the place is given back without its supervisor."""

Placement = Sequence[tuple[str, int]]
"""(Ray node id, number of ranks) of each bundle."""


class PlaceLost(ClusterError):
    """A bundle of the job's place lets no agent start: its node is gone."""


def bundles(spec: JobSpec, ranks_per_node: Sequence[int], node_ids: Sequence[str]) -> tuple[list[dict[str, float]], list[dict[str, str]]]:
    """(resources, label selector) of each bundle."""
    asked = spec.resources
    resources = [_resources(ranks * asked.cpus_per_worker, ranks * asked.gpus_per_worker) for ranks in ranks_per_node]
    return resources, [{"ray.io/node-id": node_id} for node_id in node_ids]


def reserve(job_id: str, spec: JobSpec, placement: Placement) -> bool:
    """Ask for the job's place, once; True when it is reserved, which is waited for a second at most. Asking again does no harm."""
    found = find_group(job_id)
    if found is None:
        resources, selectors = bundles(spec, [ranks for _, ranks in placement], [node_id for node_id, _ in placement])
        found = placement_group(
            resources, strategy="PACK", name=group_name(job_id), lifetime="detached", bundle_label_selector=selectors
        )
    return bool(found.wait(timeout_seconds=1))


def release(job_id: str, home: Home, standby: Sequence[str] = ()) -> None:
    """End supervisor and agents and give the place back. No error if nothing is left of them. `standby`: see `Job.standby`."""
    for name in filter(None, (supervisor_name(job_id), *standby[:1])):
        kill_named(name)
        home.supervisor(name).unlink(missing_ok=True)
    agents = [name for name in actor_names() if name.startswith(f"agent:{job_id}:") or name in standby[1:]]
    _let_leave(agents)
    for name in agents:
        kill_named(name)
    group = find_group(job_id)
    if group is not None:
        remove_placement_group(group)


def nodes_of(group: PlacementGroup) -> list[str]:
    """Ray's ids of the nodes of its bundles. Ray forgets those that are gone."""
    return _nodes_of(placement_group_table(group))


def _nodes_of(row: Mapping[str, Any]) -> list[str]:
    return [node_id for node_id in row["bundles_to_node_id"].values() if node_id]


def why_lost(job_id: str, nodes: Sequence[str]) -> str:
    """Why a reserved place lets not all agents start any more, by Ray's own tables; empty: it does. `nodes`: its own, as far as known.

    Its bundles are pinned to their nodes, so Ray does not find others for those of a node that is gone.
    """
    group = find_group(job_id)
    if group is None:
        return f"the place of {job_id} is not reserved any more"
    row, alive = placement_group_table(group), {node["NodeID"] for node in ray.nodes() if node["Alive"]}
    gone = sorted({*nodes, *_nodes_of(row)} - alive)
    if gone:
        return f"node {gone[0][:8]} is lost"
    return "a node is lost" if row["state"] == "RESCHEDULING" else ""


def supervisor_name(job_id: str) -> str:
    return f"supervisor:{job_id}"


def agent_name(job_id: str, bundle: int) -> str:
    return f"agent:{job_id}:{bundle}"


def group_name(job_id: str) -> str:
    return f"job:{job_id}"


def _resources(cpus: float, gpus: float) -> dict[str, float]:
    return {"CPU": cpus, **({"GPU": gpus} if gpus else {})}


def find_group(job_id: str) -> PlacementGroup | None:
    """By its name, which Ray looks for in the namespace of this process: `NAMESPACE`, in the controller and in all that it started.

    Not in the table of all groups: Ray keeps the removed ones there too, so that with every job that ever ran it takes longer.
    """
    try:
        return get_placement_group(group_name(job_id))
    except ValueError:
        return None


def _let_leave(agents: Sequence[str]) -> None:
    """Those that can; one whose node is gone, or that does not answer, is not waited for long."""
    handles = [named(name) for name in agents]
    answers = [handle.leave.remote() for handle in handles if handle is not None]
    if answers:
        ray.wait(answers, num_returns=len(answers), timeout=LEAVE_LIMIT_S)


def actor_names() -> list[str]:
    """Of all our actors that live."""
    return [actor["name"] for actor in ray.util.list_named_actors(all_namespaces=True) if actor["namespace"] == NAMESPACE]


def named(name: str) -> Any:
    """The handle of the actor, None if there is none."""
    try:
        return ray.get_actor(name, namespace=NAMESPACE) if name else None
    except ValueError:
        return None


def kill_named(name: str) -> None:
    if (handle := named(name)) is not None:
        ray.kill(handle, no_restart=True)
