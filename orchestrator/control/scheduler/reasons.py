"""Why a job waits or can never run, in words. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property

from orchestrator.control.scheduler.model import CPU_UNITS, Demand, Job, Labels, Node, Placement


class Reasons(Mapping[str, str]):
    """Sentences of all jobs that wait, made as they are read: most are not."""

    def __init__(self, waiting: Sequence[Job], special: Mapping[str, Callable[[], str]], other: Callable[[Job], str]) -> None:
        """`special`: of some of the jobs, by id; `other`: of each of the rest."""
        self._waiting, self._special, self._other = waiting, special, other

    def __getitem__(self, job_id: str) -> str:
        if job_id in self._special:
            return self._special[job_id]()
        return self._other(self._jobs[job_id])

    def __iter__(self) -> Iterator[str]:
        return (job.id for job in self._waiting)

    def __len__(self) -> int:
        return len(self._waiting)

    @cached_property
    def _jobs(self) -> dict[str, Job]:
        return {job.id: job for job in self._waiting}

    def __repr__(self) -> str:
        return repr(dict(self))


def infeasible(nodes: Iterable[Node], demand: Demand) -> str:
    nodes = tuple(node for node in nodes if node.has(demand.labels))
    cpu_units, gpus = sum(node.cpu_units for node in nodes), sum(node.gpus for node in nodes)
    has = f"{_cpus(cpu_units)}{f' and {_gpus(gpus)}' if gpus or demand.gpus else ''} on {_nodes(len(nodes))}"
    limit = f", {demand.max_workers_per_node} at most on each node" if demand.max_workers_per_node else ""
    together = f", {demand.group} together on a node" if demand.group > 1 else ""
    return f"needs {_needs(demand)}{limit}{together}; the cluster has {has}{' with that' if demand.labels else ''} in all"


def short(nodes: Iterable[Node], job: Job, demand: Demand) -> str:
    return f"{infeasible(nodes, job.demand)}; starts with {_workers(demand.num_workers)} if no node comes within {job.shrink_after_s:g} s"


def waiting(demand: Demand, free: Sequence[tuple[int, int]], holders: Sequence[str]) -> str:
    """`free`: (CPU units, GPUs) of each node that it may run on."""
    what = _cpus(sum(max(0, cpu_units) for cpu_units, _ in free))
    if demand.gpus:
        what += f" and {_gpus(sum(max(0, gpus) for _, gpus in free))}"
    held = f", held by {_some(holders)}" if holders else ""
    spread = f" on {_nodes(len(free))}" if len(free) > 1 else ""
    plural = what.startswith("1 ") and not demand.gpus
    return f"needs {_needs(demand)}; {what} {'is' if plural else 'are'} free{spread}{held}"


def waits_for_nodes(coming: Sequence[Node]) -> str:
    """`coming`: the nodes of its place that are not there yet."""
    gpus, on_way = sum(node.gpus for node in coming), sum(node.starting for node in coming)
    what = (_gpus(gpus) if gpus else _cpus(sum(node.cpu_units for node in coming))).replace(" ", " more ")
    state = f"; {on_way} of {_nodes(len(coming))} on the way" if on_way else ""
    return f"waits for nodes: {what} asked of the autoscaler{state}"


def behind(job_id: str) -> str:
    return f"waits its turn behind {job_id}"


def cleared(demand: Demand, leavers: Sequence[str]) -> str:
    return f"needs {_needs(demand)}; " + (f"its place is being cleared by {_some(leavers)}" if leavers else "its place is being cleared")


def reserved(in_s: float) -> str:
    """A part of the reason, for a job whose place is kept."""
    return f"; has a place reserved in {in_s:.0f} s at the latest"


def receipt(for_job: str, cost: float, starved: bool) -> str:
    """Of a preemption."""
    return f"makes room for {for_job}, which {'has waited too long' if starved else 'comes first'}; {cost:.0f} GPU-seconds are lost"


def over_quota(tenant: str, quota: int, held: int, width: int) -> str:
    return f"needs {width} of the quota of {tenant or 'the one tenant'}: {held} of {quota} are in use"


def too_many_jobs(user: str, limit: int) -> str:
    return f"{user or 'its user'} runs {limit} job{'' if limit == 1 else 's'}, the most that the tenant allows a user"


def kept_out(usable: Iterable[Node], allowed: Iterable[Node]) -> str:
    """A part of the reason, for the nodes that a job may not run on; empty if it may run on all."""
    ids = {node.id for node in allowed}
    names = sorted(node.name for node in usable if node.id not in ids)
    return f"; kept out after their failures: {_some(names)} (`orchestrator nodes`)" if names else ""


def excluded_but_taken(excluded: Mapping[str, str], placement: Placement) -> str:
    """A warning; empty if none of the place's nodes is one that jobs are kept from. `excluded`: the names of these, by id."""
    names = sorted(excluded[node_id] for node_id, _ in placement if node_id in excluded)
    if not names:
        return ""
    return f"runs on {_some(names)} in spite of failures there (`orchestrator nodes`): it could never run without"


def _needs(demand: Demand) -> str:
    each = _cpus(demand.cpu_units) + (f" and {_gpus(demand.gpus)}" if demand.gpus else "")
    where = f" on nodes with {_labels(demand.labels)}" if demand.labels else ""
    return f"{demand.num_workers} x {each}{where}"


def _labels(labels: Labels) -> str:
    return ", ".join(f"{key}={value}" for key, value in labels)


def _cpus(units: int) -> str:
    return f"{units / CPU_UNITS:g} CPU{'' if units == CPU_UNITS else 's'}"


def _gpus(count: int) -> str:
    return f"{count} GPU{'' if count == 1 else 's'}"


def _workers(count: int) -> str:
    return f"{count} worker{'' if count == 1 else 's'}"


def _nodes(count: int) -> str:
    return f"{count} node{'' if count == 1 else 's'}"


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
