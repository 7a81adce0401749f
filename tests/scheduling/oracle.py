"""What is possible at a moment, found by trying everything: for small instances only. Shares no line with the scheduler."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import NamedTuple

from scheduling.strategies import Moment

from orchestrator.control.scheduler.model import Demand, Job, Node, Placement, Policy, Run, Standing, Start


class Room(NamedTuple):
    """What is free on a node, and what it has in all."""

    cpu_units: int
    gpus: int
    of_cpu_units: int
    of_gpus: int

    @property
    def idle(self) -> bool:
        """All of its GPUs are free."""
        return self.gpus == self.of_gpus

    @property
    def emptied(self) -> Room:
        return Room(self.of_cpu_units, self.of_gpus, self.of_cpu_units, self.of_gpus)


Rooms = Mapping[str, Room]
"""By node id."""


def rooms(nodes: Iterable[Node], held: Iterable[tuple[Demand, Placement]]) -> dict[str, Room]:
    """What of `nodes` is left beside `held`; bundles on other nodes hold nothing."""
    free = {node.id: Room(node.cpu_units, node.gpus, node.cpu_units, node.gpus) for node in nodes}
    for demand, placement in held:
        for node_id, workers in placement:
            if node_id in free:
                cpu_units, gpus, *of = free[node_id]
                free[node_id] = Room(cpu_units - workers * demand.cpu_units, gpus - workers * demand.gpus, *of)
    return free


def held(moment: Moment, starts: Iterable[Start] = (), without: Collection[str] = ()) -> list[tuple[Demand, Placement]]:
    """By the runs, but those named `without`, and by what starts."""
    jobs = {job.id: job for job in moment.queue}
    running = [(run.job.demand, run.placement) for run in moment.running if run.job.id not in without]
    return running + [(jobs[start.job_id].demand, start.placement) for start in starts]


def most(room: Room, demand: Demand) -> int:
    """Workers that fit there."""
    workers = 0
    while (
        (workers + 1) * demand.cpu_units <= room.cpu_units
        and (workers + 1) * demand.gpus <= room.gpus
        and (not demand.max_workers_per_node or workers + 1 <= demand.max_workers_per_node)
    ):
        workers += 1
    return workers


def placements(free: Rooms, demand: Demand, workers: int) -> Iterator[Placement]:
    """All there are on these nodes, each once."""

    def on(nodes: list[str], left: int) -> Iterator[Placement]:
        if not left:
            yield ()
        elif nodes:
            for here in range(min(left, most(free[nodes[0]], demand)) + 1):
                for others in on(nodes[1:], left - here):
                    yield ((nodes[0], here), *others) if here else others

    return (placement for placement in on(sorted(free), workers) if is_legal(placement, free, demand))


def is_legal(placement: Placement, free: Rooms, demand: Demand, on_one: bool | None = None) -> bool:
    """No group is cut: all are of `demand.group` workers, but the last where they do not divide the gang. A gang on GPUs that fits one of
    these nodes when that is empty is on one; of a larger one all bundles but one are on nodes whose GPUs were all free. `on_one`: as in
    `fits`."""
    workers = sum(count for _, count in placement)
    cut = [count % demand.group for _, count in placement if count % demand.group]
    if cut != ([workers % demand.group] if workers % demand.group else []):
        return False
    if not stays_together(demand, workers):
        return True
    if fits_one_empty(free, demand, workers) if on_one is None else on_one:
        return len(placement) == 1
    return sum(not free[node_id].idle for node_id, _ in placement) <= 1


def stays_together(demand: Demand, workers: int) -> bool:
    """Of a gang on GPUs, unless its user spreads it over more than one node."""
    return bool(demand.gpus) and (not demand.max_workers_per_node or demand.max_workers_per_node >= workers)


def fits_one_empty(free: Rooms, demand: Demand, workers: int) -> bool:
    return stays_together(demand, workers) and any(most(room.emptied, demand) >= workers for room in free.values())


def fits(free: Rooms, demand: Demand, workers: int, on_one: bool | None = None) -> bool:
    """The same as whether there is any of `placements`, by counting groups. `on_one`: whether it is to be on one node; None: if it fits one
    of these when that is empty."""
    counts = {node_id: most(room, demand) for node_id, room in free.items()}
    if fits_one_empty(free, demand, workers) if on_one is None else on_one:
        return max(counts.values(), default=0) >= workers
    last = workers % demand.group
    for node_id, count in counts.items():
        here = count - (count - last) % demand.group if count >= last else 0
        others = (name for name in counts if name != node_id and (free[name].idle or not stays_together(demand, workers)))
        if here + sum(counts[name] - counts[name] % demand.group for name in others) >= workers and (here or not last):
            return True
    return False


def open_nodes(moment: Moment, demand: Demand) -> tuple[Node, ...]:
    """The nodes that a gang may be placed on: of those with its labels, and of those that are excluded after their failures only where it
    could never run without."""
    labelled = with_labels(moment.usable, demand)
    trusted = tuple(node for node in labelled if node.standing is not Standing.EXCLUDED)
    return trusted if fits(rooms(trusted, ()), demand, demand.num_workers) else labelled


def with_labels(nodes: Iterable[Node], demand: Demand) -> tuple[Node, ...]:
    """Those that have all which the gang asks for."""
    return tuple(node for node in nodes if all(label in node.labels for label in demand.labels))


def fits_on(
    moment: Moment, job: Job, starts: Iterable[Start], without: Collection[str] = (), but: Collection[str] = (), workers: int = 0
) -> bool:
    """Whether the whole gang, or so many workers, fit beside the runs, but those named `without`, and the starts, on none of the nodes
    `but`."""
    demand = replace(job.demand, num_workers=workers or job.demand.num_workers)
    nodes = open_nodes(moment, demand)
    on_one = fits_one_empty(rooms(nodes, ()), demand, demand.num_workers)
    free = rooms((node for node in nodes if node.id not in but), held(moment, starts, without))
    return fits(free, demand, demand.num_workers, on_one)


def feasible(moment: Moment, job: Job) -> bool:
    """Its whole gang would fit if nothing else ran."""
    return fits(rooms(with_labels(moment.usable, job.demand), ()), job.demand, job.demand.num_workers)


def possible(moment: Moment, job: Job) -> bool:
    """So would some legal number of its workers."""
    return any(fits(rooms(with_labels(moment.usable, job.demand), ()), job.demand, size) for size in (*job.smaller, job.demand.num_workers))


def protected_until(run: Run, policy: Policy) -> float:
    """No one evicts it before."""
    if run.job.preemptions >= policy.max_preemptions:
        return math.inf
    return run.started_s + policy.min_run_s * 2 ** min(run.job.preemptions, policy.max_doublings)


def evictable(moment: Moment) -> list[Run]:
    """Runs that may be preempted now."""
    runs = [run for run in moment.running if run.job.preemptible and not run.leaving]
    return [run for run in runs if moment.now >= protected_until(run, moment.policy)]


def lost(run: Run, now: float) -> float:
    """Service that its eviction costs: what it did since its newest durable checkpoint, the save and the next start."""
    since = run.started_s if run.saved_s is None else min(max(run.saved_s, run.started_s), now)
    return run.width * (now - since + run.save_s + run.restart_s)


def earliest(moment: Moment, job: Job, ends: Mapping[str, float], starts: Iterable[Start] = ()) -> float | None:
    """When `job` fits if everything that holds a place now leaves it at `ends` and nothing else starts; None: not even then."""
    nodes, starts = open_nodes(moment, job.demand), tuple(starts)
    for at in sorted({moment.now, *(end for end in ends.values() if end > moment.now)}):
        without = {name for name, end in ends.items() if end <= at}
        left = [start for start in starts if start.job_id not in without]
        if fits(rooms(nodes, held(moment, left, without)), job.demand, job.demand.num_workers):
            return at
    return None
