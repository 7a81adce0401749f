"""Why a job waits or can never run, in words. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from orchestrator.control.scheduler.model import CPU_UNITS, Demand, Node, Placement, QueuedJob, RunningJob, Standing
from orchestrator.control.scheduler.place import Free


def infeasible(nodes: Iterable[Node], demand: Demand) -> str:
    nodes = tuple(nodes)
    cpu_units, gpus = sum(node.cpu_units for node in nodes), sum(node.gpus for node in nodes)
    has = f"{_cpus(cpu_units)}{f' and {_gpus(gpus)}' if gpus or demand.gpus else ''} on {_nodes(len(nodes))}"
    limit = f", {demand.max_workers_per_node} at most on each node" if demand.max_workers_per_node else ""
    return f"needs {_needs(demand)}{limit}; the cluster has {has} in all"


def short(nodes: Iterable[Node], job: QueuedJob, demand: Demand) -> str:
    return f"{infeasible(nodes, job.demand)}; starts with {_workers(demand.num_workers)} if no node comes within {job.shrink_after_s:g} s"


def waiting(free: tuple[Free, ...], demand: Demand, running: tuple[RunningJob, ...]) -> str:
    what = f"{_cpus(sum(max(0, node.cpu_units) for node in free))}"
    if demand.gpus:
        what += f" and {_gpus(sum(max(0, node.gpus) for node in free))}"
    holders = [other.job_id for other in running if other.placement]
    held = f", held by {_some(holders)}" if holders else ""
    spread = f" on {_nodes(len(free))}" if len(free) > 1 else ""
    plural = what.startswith("1 ") and not demand.gpus
    return f"needs {_needs(demand)}; {what} {'is' if plural else 'are'} free{spread}{held}"


def behind(job_id: str) -> str:
    return f"waits its turn behind {job_id}"


def kept_out(usable: Iterable[Node], allowed: Iterable[Node]) -> str:
    """A part of the reason, for the nodes that a job may not run on; empty if it may run on all."""
    ids = {node.id for node in allowed}
    names = sorted(node.name for node in usable if node.id not in ids)
    return f"; kept out after their failures: {_some(names)} (`orchestrator nodes`)" if names else ""


def excluded_but_taken(nodes: Iterable[Node], placement: Placement) -> str:
    """A warning; empty if none of the place's nodes is one that jobs are kept from."""
    taken = {node_id for node_id, _ in placement}
    names = sorted(node.name for node in nodes if node.id in taken and node.standing is Standing.EXCLUDED)
    if not names:
        return ""
    return f"runs on {_some(names)} in spite of failures there (`orchestrator nodes`): it could never run without"


def _needs(demand: Demand) -> str:
    each = _cpus(demand.cpu_units) + (f" and {_gpus(demand.gpus)}" if demand.gpus else "")
    return f"{demand.num_workers} x {each}"


def _cpus(units: int) -> str:
    return f"{units / CPU_UNITS:g} CPU{'' if units == CPU_UNITS else 's'}"


def _gpus(count: int) -> str:
    return f"{count} GPU{'' if count == 1 else 's'}"


def _workers(count: int) -> str:
    return f"{count} worker{'' if count == 1 else 's'}"


def _nodes(count: int) -> str:
    return f"{count} node{'' if count == 1 else 's'}"


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
