"""Traces and clusters for the simulator, and what became of their jobs in it and in the slow engine of these tests."""

from __future__ import annotations

from collections import defaultdict
from itertools import zip_longest
from random import Random

from scheduling.lives import CLOSE_S, Story, live
from scheduling.machine import Event
from scheduling.strategies import HOUR, policy

from orchestrator.control.scheduler import plan
from orchestrator.control.scheduler.model import CPU_UNITS, Job, Node, Policy
from orchestrator.simulation.cluster import demand_of, shapes_by_node
from orchestrator.simulation.engine import simulate
from orchestrator.simulation.model import Outcome, Shape, TraceJob, World

Stay = tuple[float, float, tuple[tuple[str, int], ...]]
"""(from, until, place)."""
Stays = dict[str, list[Stay]]
"""Of each job."""


def in_every_round(rng: Random, mode: str) -> tuple[Stays, Stays]:
    """(skipping to the next change, planning in every round) of a random trace, with elastic jobs and nodes that fail."""
    of, made = world(rng, failing=True), policy(rng, mode, quotas=False)
    jobs = trace(rng, of, elastic=True)
    skipping, stepping = (simulate(jobs, of, plan, made, every_round=every) for every in (False, True))
    return stays(skipping), stays(stepping)


def in_both_engines(rng: Random, mode: str) -> tuple[Stays, Stays]:
    """(the simulator's, the slow one's) of a random trace of rigid jobs on nodes that never fail."""
    of, made = world(rng, failing=False), policy(rng, mode, quotas=False)
    jobs = trace(rng, of, elastic=False, tenants=("",))
    life = live(story_of(jobs, of, made), round_s=made.round_s if mode == "preemptive" else 0.0)
    return stays(simulate(jobs, of, plan, made)), stays_of(life.log)


def close(some: Stays, others: Stays) -> bool:
    """The same stays, within some of the milliseconds to which the next change is told."""
    pairs = [(one, other) for name in some for one, other in zip_longest(some[name], others.get(name, []))]
    return some.keys() == others.keys() and all(
        one and other and one[2] == other[2] and max(abs(one[0] - other[0]), abs(one[1] - other[1])) < CLOSE_S for one, other in pairs
    )


def world(rng: Random, *, failing: bool) -> World:
    shapes = tuple(Shape(nodes=rng.randint(1, 3), gpus_per_node=rng.choice((8, 4, 2))) for _ in range(rng.choice((1, 1, 2))))
    mtbf_s = rng.choice((0.0, 40_000.0)) if failing else 0.0
    return World(shapes=shapes, node_mtbf_s=mtbf_s, seed=rng.randrange(9))


def trace(rng: Random, of: World, *, elastic: bool, tenants: tuple[str, ...] = ("", "a", "b")) -> tuple[TraceJob, ...]:
    largest = max(shape.gpus_per_node for shape in of.shapes)
    widest = sum(shape.nodes * largest for shape in of.shapes if shape.gpus_per_node == largest)
    jobs, at = [], 0
    for number in range(rng.randint(1, 15)):
        at += rng.choice((0, 0, 60, 600, HOUR))
        gpus = min(rng.choice((1, 1, 2, 4, widest)), widest)
        sizes = tuple(sorted({gpus, rng.randint(1, gpus), rng.randint(gpus, widest)})) if elastic and rng.randrange(2) else ()
        jobs.append(
            TraceJob(
                id=f"j{number:02d}",
                submit_s=at,
                gpus=gpus,
                duration_s=rng.choice((60, 601, HOUR, 3 * HOUR, 12 * HOUR)),
                sizes=sizes,
                tenant=rng.choice(tenants),
                priority=rng.choice((0, 0, 0, 1)),
                limit_s=rng.choice((None, None, 7200.0)),
            )
        )
    return tuple(jobs)


def story_of(jobs: tuple[TraceJob, ...], of: World, made: Policy) -> Story:
    nodes = tuple(_node(name, shape) for name, shape in shapes_by_node(of).items())
    needs = tuple((job.submit_s, _job(job, of), job.duration_s) for job in jobs)
    return Story(nodes=nodes, policy=made, jobs=needs, restart_s=of.preemption_loss_s)


def stays(outcome: Outcome) -> dict[str, list[Stay]]:
    return {found.job.id: [(stay.start_s, stay.end_s, stay.nodes) for stay in found.segments] for found in outcome.jobs}


def stays_of(log: list[Event]) -> dict[str, list[Stay]]:
    found, since = defaultdict[str, list[Stay]](list), dict[str, float]()
    for event in log:
        if event.what == "started":
            since[event.job_id] = event.at_s
        if event.what in ("left", "done"):
            found[event.job_id].append((since[event.job_id], event.at_s, event.placement))
    return dict(found)


def _node(name: str, shape: Shape) -> Node:
    return Node(id=name, cpu_units=shape.gpus_per_node * CPU_UNITS, gpus=shape.gpus_per_node)


def _job(job: TraceJob, of: World) -> Job:
    return Job(
        id=job.id, demand=demand_of(job.gpus, of), submitted_s=job.submit_s, queued_s=job.submit_s, tenant=job.tenant, user=job.user,
        priority=job.priority, limit_s=job.limit_s,
    )  # fmt: skip
