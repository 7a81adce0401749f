"""Random moments of a cluster: everything that the scheduler sees, made from a `random.Random`.

Hypothesis gives one whose choices it can shrink, so the plain choice always comes first; a campaign gives one by number.
A moment need not be one that the scheduler itself would have led to: it may have been started anew, with another policy.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from random import Random
from typing import Any

from hypothesis import strategies as st

from orchestrator.control.scheduler import plan
from orchestrator.control.scheduler.model import (
    CPU_UNITS,
    ClusterView,
    Demand,
    Job,
    Node,
    Placement,
    Plan,
    Policy,
    Run,
    Standing,
    Tenant,
    Usage,
)  # fmt: skip

NOW = 864_000.0
TENANTS = ("", "a", "b", "c")
MODES = ("fifo", "batch", "preemptive")
HOUR = 3600
Planner = Callable[[ClusterView, tuple[Job, ...], tuple[Run, ...], Usage, float, Policy], Plan]


@dataclass(frozen=True, kw_only=True)
class Moment:
    """The arguments of `plan`."""

    cluster: ClusterView
    queue: tuple[Job, ...] = ()
    running: tuple[Run, ...] = ()
    usage: Usage = field(default_factory=Usage)
    now: float = NOW
    policy: Policy = field(default_factory=Policy)
    planner: Planner = field(default=plan, compare=False, repr=False)

    def plan(self) -> Plan:
        return self.planner(self.cluster, self.queue, self.running, self.usage, self.now, self.policy)

    @property
    def usable(self) -> tuple[Node, ...]:
        return tuple(node for node in self.cluster.nodes if node.alive and not node.draining)


def moment(rng: Random) -> Moment:
    nodes = cluster(rng)
    made = policy(rng)
    running = runs(rng, nodes, made)
    queue = tuple(waiting(rng, f"q{number}", nodes) for number in range(rng.randint(0, 8)))
    return Moment(cluster=ClusterView(nodes=nodes), queue=queue, running=running, usage=usage(rng), policy=made)


def moments() -> st.SearchStrategy[Moment]:
    return st.randoms(use_true_random=False).map(moment)


def calm(rng: Random) -> tuple[Node, ...]:
    """Nodes that nothing is amiss with."""
    alike, first = rng.randrange(10) < 6, _node(rng, 0)
    return tuple(replace(first if alike else _node(rng, number), id=f"n{number}") for number in range(rng.randint(1, 5)))


def cluster(rng: Random) -> tuple[Node, ...]:
    nodes = calm(rng)
    return tuple(_amiss(rng, node) for node in nodes) if rng.randrange(10) > 6 else nodes


def policy(rng: Random, mode: str | None = None, *, quotas: bool | None = None) -> Policy:
    quotas = rng.randrange(10) > 6 if quotas is None else quotas
    return Policy(
        mode=mode or rng.choice(MODES),
        tenants={name: _tenant(rng, quotas) for name in TENANTS if rng.randrange(2)},
        levels=rng.choice(((7_200.0, 72_000.0, 720_000.0), (600.0, 6_000.0), ())),
        max_wait_s=rng.choice((8.0 * HOUR, 1.0 * HOUR)),
        max_gang_wait_s=rng.choice((12.0 * HOUR, 0.5 * HOUR)),
        max_total_wait_s=rng.choice((72.0 * HOUR, 20.0 * HOUR)),
        reserve_after_s=rng.choice((0.0, 0.0, 600.0)),
        min_run_s=rng.choice((1800.0, 600.0)),
        max_doublings=rng.choice((6, 1)),
        max_preemptions=rng.choice((15, 3)),
        gain_factor=rng.choice((2.0, 0.0)),
        resize_interval_s=rng.choice((1800.0, 600.0)),
    )


def demand(rng: Random, nodes: tuple[Node, ...]) -> Demand:
    """Some never fit."""
    of_node = max(node.gpus for node in nodes)
    gpus = rng.choice((1, 1, 1, 2, 0)) if of_node else rng.choice((0, 0, 0, 1))
    on_one = max(1, of_node // gpus) if gpus else max(node.cpu_units for node in nodes) // CPU_UNITS
    if gpus and rng.randrange(8) == 7:  # a node's worth is a group, and the last one may be smaller
        workers = rng.randint(1, on_one * len(nodes))
        return Demand(num_workers=workers, cpu_units=CPU_UNITS, gpus=gpus, group=min(workers, on_one))
    group = rng.choice([size for size in (1, 1, 1, 2, 4) if size <= on_one])
    most = rng.randint(1, max(1, on_one * len(nodes) // group)) if rng.randrange(10) > 6 else rng.randint(1, max(1, on_one // group))
    workers = group * most
    per_node = group * rng.randint(1, max(1, on_one // group)) if rng.randrange(10) == 9 else 0
    return Demand(
        num_workers=workers, cpu_units=rng.choice((CPU_UNITS, CPU_UNITS, CPU_UNITS // 2)), gpus=gpus, max_workers_per_node=per_node,
        group=group, labels=rng.choice(((), (), (), (), (), (("zone", "a"),), (("kind", "new"), ("zone", "a")))),
    )  # fmt: skip


def job(rng: Random, name: str, nodes: tuple[Node, ...]) -> Job:
    """That has just been submitted."""
    asked = demand(rng, nodes)
    return Job(
        id=name, demand=asked, submitted_s=NOW, queued_s=NOW, tenant=rng.choice(TENANTS), user=rng.choice(("u", "v")),
        priority=rng.choice((0, 0, 0, 0, 1, -1)), limit_s=rng.choice((None, 600.0, 1.0 * HOUR, 20.0 * HOUR)),
        preemptible=rng.randrange(10) < 8, **_sizes(rng, asked),
    )  # fmt: skip


def waiting(rng: Random, name: str, nodes: tuple[Node, ...]) -> Job:
    """That has waited for a while, perhaps after some runs."""
    waits = rng.choice((0, 60, 600, HOUR, 8 * HOUR, 9 * HOUR, 30 * HOUR)) + rng.randrange(3)
    return replace(_past(rng, job(rng, name, nodes), NOW - waits), short_since_s=rng.choice((None, None, NOW - 600)))


def runs(rng: Random, nodes: tuple[Node, ...], made: Policy) -> tuple[Run, ...]:
    """As many as find a place, none of them on a node more than it holds. Nodes may have died or begun to drain under them."""
    free, found = {node.id: (node.cpu_units, node.gpus) for node in nodes}, []
    for number in range(rng.randint(0, 8)):
        asked = job(rng, f"r{number}", nodes)
        size = rng.choice((asked.demand.num_workers, *asked.smaller, *asked.larger)) if rng.randrange(4) == 3 else asked.demand.num_workers
        placement = somewhere(rng, free, asked.demand, size)
        if placement is not None:
            for node_id, workers in placement:
                cpu_units, gpus = free[node_id]
                free[node_id] = (cpu_units - workers * asked.demand.cpu_units, gpus - workers * asked.demand.gpus)
            found.append(_run(rng, asked, placement, made))
    return tuple(found)


def somewhere(rng: Random, free: Mapping[str, tuple[int, int]], asked: Demand, size: int) -> Placement | None:
    """Any legal placement, not the best."""
    order = sorted(free)
    rng.shuffle(order)
    chosen, left = [], size
    for node_id in order:
        cpu_units, gpus = free[node_id]
        fits = min(cpu_units // asked.cpu_units, gpus // asked.gpus if asked.gpus else left, asked.max_workers_per_node or left, left)
        fits -= fits % asked.group
        if fits:
            chosen.append((node_id, fits))
            left -= fits
    return tuple(sorted(chosen)) if not left else None


def usage(rng: Random) -> Usage:
    return Usage(
        charged={name: float(rng.choice((0, 1000, 100_000, 1_000_000))) for name in TENANTS if rng.randrange(2)},
        charged_at_s=NOW - rng.choice((0, 0, 60, HOUR)),
        history={(name, rng.choice((1, 2, 4, 8))): _times(rng) for name in TENANTS if rng.randrange(2)},
    )


def _times(rng: Random) -> tuple[float, ...]:
    return tuple(float(rng.choice((60, 600, HOUR, 10 * HOUR))) for _ in range(rng.choice((1, 1, 2, 20))))


def _node(rng: Random, number: int) -> Node:
    gpus = rng.choice((8, 4, 2, 1, 0))
    labels = rng.choice(((("kind", "new"), ("zone", "a")), (("zone", "a"),), (("zone", "b"),), ()))
    return Node(id=f"n{number}", cpu_units=CPU_UNITS * rng.choice((16, 8, 2)), gpus=gpus, labels=labels)


def _amiss(rng: Random, node: Node) -> Node:
    draining = rng.randrange(6) == 5
    return replace(
        node, alive=rng.randrange(8) < 7, draining=draining, drain_deadline_s=NOW + 600 if draining else None,
        standing=Standing(rng.choice((0, 0, 0, 1, 2))),
    )  # fmt: skip


def _tenant(rng: Random, quotas: bool) -> Tenant:
    return Tenant(
        weight=rng.choice((1.0, 2.0, 0.5)),
        quota=rng.choice((None, 2, 4, 8, 16)) if quotas else None,
        jobs_per_user=rng.choice((None, 1, 2)) if quotas else None,
    )


def _sizes(rng: Random, asked: Demand) -> dict[str, Any]:
    """Half of the jobs that are elastic may only shrink."""
    if rng.randrange(10) < 7:
        return {}
    smaller = tuple(size for size in range(asked.group, asked.num_workers, asked.group) if rng.randrange(2))
    larger = (asked.num_workers + asked.group, asked.num_workers * 2 + asked.group) if rng.randrange(2) else ()
    return {"smaller": smaller, "larger": larger, "shrink_after_s": rng.choice((0.0, 600.0))}


def _past(rng: Random, made: Job, queued_s: float) -> Job:
    """Its runs and waits before `queued_s`, which add up to the time since it was submitted."""
    ran_s, waited_s = (float(rng.choice((0, 0, 600, 4 * HOUR, 40 * HOUR))), float(rng.choice((0, 600, 20 * HOUR))))
    preemptions = rng.choice((0, 1, 3)) if ran_s else 0
    if not ran_s:
        waited_s = 0.0
    return replace(
        made, submitted_s=queued_s - ran_s - waited_s, queued_s=queued_s, attained=ran_s * made.demand.width, ran_s=ran_s,
        waited_s=waited_s, preemptions=preemptions, resized_s=queued_s - ran_s if ran_s and made.smaller and rng.randrange(2) else None,
    )  # fmt: skip


def _run(rng: Random, made: Job, placement: Placement, policy: Policy) -> Run:
    ran = rng.choice((0, 60, policy.min_run_s - 1, policy.min_run_s, policy.min_run_s + 60, 8 * policy.min_run_s, 20 * HOUR))
    started = NOW - ran
    can_grow = sum(count for _, count in placement) < max(made.demand.num_workers, *made.larger, 0)
    return Run(
        job=_past(rng, made, started - rng.choice((0, 600))), placement=placement, started_s=started,
        saved_s=rng.choice((None, math.inf, NOW - rng.randrange(int(ran) + 1))) if made.preemptible else None,
        save_s=float(rng.choice((0, 30))), restart_s=float(rng.choice((0, 60))), may_grow=can_grow and rng.randrange(4) > 0,
        leaving=rng.randrange(12) == 11 and made.preemptible,
    )  # fmt: skip
