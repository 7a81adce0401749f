"""What is possible at a moment, found by trying everything: for small instances only. Shares no line with the scheduler."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Mapping
from itertools import combinations

from scheduling.strategies import Moment

from orchestrator.control.scheduler.model import Demand, Job, Node, Placement, Policy, Run, Standing, Start

Rooms = Mapping[str, tuple[int, int]]
"""(CPU units, GPUs) that are free, by node id."""


def rooms(nodes: Iterable[Node], held: Iterable[tuple[Demand, Placement]]) -> dict[str, tuple[int, int]]:
    """What of `nodes` is left beside `held`; bundles on other nodes hold nothing."""
    free = {node.id: (node.cpu_units, node.gpus) for node in nodes}
    for demand, placement in held:
        for node_id, workers in placement:
            if node_id in free:
                cpu_units, gpus = free[node_id]
                free[node_id] = (cpu_units - workers * demand.cpu_units, gpus - workers * demand.gpus)
    return free


def held(moment: Moment, starts: Iterable[Start] = (), without: Collection[str] = ()) -> list[tuple[Demand, Placement]]:
    """By the runs, but those named `without`, and by what starts."""
    jobs = {job.id: job for job in moment.queue}
    running = [(run.job.demand, run.placement) for run in moment.running if run.job.id not in without]
    return running + [(jobs[start.job_id].demand, start.placement) for start in starts]


def most(room: tuple[int, int], demand: Demand) -> int:
    """Workers that fit there."""
    cpu_units, gpus = room
    workers = 0
    while (
        (workers + 1) * demand.cpu_units <= cpu_units
        and (workers + 1) * demand.gpus <= gpus
        and (not demand.max_workers_per_node or workers + 1 <= demand.max_workers_per_node)
    ):
        workers += 1
    return workers


def placements(free: Rooms, demand: Demand, workers: int) -> Iterator[Placement]:
    """All there are, each once."""

    def on(nodes: list[str], left: int) -> Iterator[Placement]:
        if not left:
            yield ()
        elif nodes:
            for here in range(min(left, most(free[nodes[0]], demand)) + 1):
                for others in on(nodes[1:], left - here):
                    yield ((nodes[0], here), *others) if here else others

    return (placement for placement in on(sorted(free), workers) if keeps_groups(placement, demand, workers))


def keeps_groups(placement: Placement, demand: Demand, workers: int) -> bool:
    """No group is cut: all are of `demand.group` workers, but the last where they do not divide the gang."""
    cut = [count % demand.group for _, count in placement if count % demand.group]
    return cut == ([workers % demand.group] if workers % demand.group else [])


def fits(free: Rooms, demand: Demand, workers: int) -> bool:
    """The same as whether there is any of `placements`, by counting groups."""
    whole, last = divmod(workers, demand.group)
    counts = [most(room, demand) for room in free.values()]
    groups = sum(count // demand.group for count in counts)
    return groups > whole or (groups == whole and (not last or any(count % demand.group >= last for count in counts)))


def open_nodes(moment: Moment, demand: Demand) -> tuple[Node, ...]:
    """The nodes that a gang may be placed on: of those that are excluded after their failures only where it could never run without."""
    trusted = tuple(node for node in moment.usable if node.standing is not Standing.EXCLUDED)
    return trusted if fits(rooms(trusted, ()), demand, demand.num_workers) else moment.usable


def feasible(moment: Moment, job: Job) -> bool:
    """Its whole gang would fit if nothing else ran."""
    return fits(rooms(moment.usable, ()), job.demand, job.demand.num_workers)


def protected_until(run: Run, policy: Policy) -> float:
    """No one evicts it before."""
    if run.job.preemptions >= policy.max_preemptions:
        return math.inf
    return run.started_s + policy.min_run_s * 2 ** min(run.job.preemptions, policy.max_doublings)


def evictable(moment: Moment) -> list[Run]:
    """Runs that may be preempted now."""
    return [run for run in moment.running if run.job.preemptible and not run.leaving and moment.now >= protected_until(run, moment.policy)]


def lost(run: Run, now: float) -> float:
    """Service that its eviction costs: what it did since its newest durable checkpoint, the save and the next start."""
    since = run.started_s if run.saved_s is None else min(max(run.saved_s, run.started_s), now)
    return run.width * (now - since + run.save_s + run.restart_s)


def victim_sets(moment: Moment, job: Job, starts: Iterable[Start] = ()) -> Iterator[tuple[Run, ...]]:
    """Every set of evictable runs without which `job` fits, from the smallest: 2 ** n of n."""
    candidates, nodes, starts = evictable(moment), open_nodes(moment, job.demand), tuple(starts)
    for count in range(len(candidates) + 1):
        for chosen in combinations(candidates, count):
            without = {run.job.id for run in chosen}
            if fits(rooms(nodes, held(moment, starts, without)), job.demand, job.demand.num_workers):
                yield chosen


def earliest(moment: Moment, job: Job, ends: Mapping[str, float], starts: Iterable[Start] = ()) -> float | None:
    """When `job` fits if everything that holds a place now leaves it at `ends` and nothing else starts; None: not even then."""
    nodes, starts = open_nodes(moment, job.demand), tuple(starts)
    for at in sorted({moment.now, *(end for end in ends.values() if end > moment.now)}):
        without = {name for name, end in ends.items() if end <= at}
        left = [start for start in starts if start.job_id not in without]
        if fits(rooms(nodes, held(moment, left, without)), job.demand, job.demand.num_workers):
            return at
    return None
