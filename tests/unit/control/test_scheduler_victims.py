"""The arranged victims answer as if all were looked at anew each time."""

from __future__ import annotations

import math
import random

import pytest

from orchestrator.control.scheduler.clearing import cheapest
from orchestrator.control.scheduler.model import CPU_UNITS, ClusterView, Demand, Job, Node, Policy, Run
from orchestrator.control.scheduler.place import Grid
from orchestrator.control.scheduler.preempt import Claim, evictable_from
from orchestrator.control.scheduler.victims import Victims

POLICY = Policy(mode="preemptive", min_run_s=100.0)
NOW, NODES = 20_000.0, 6
TENANTS = {"a": (True, 1), "b": (False, 0), "c": (False, 2)}


def need(gpus):
    return Demand(num_workers=gpus, cpu_units=CPU_UNITS, gpus=1)


def a_run(rng, name, node, gpus):
    job = Job(
        id=name, demand=need(gpus), submitted_s=0.0, queued_s=0.0, tenant=rng.choice("abc"), priority=rng.choice((0, 0, 1)),
        attained=rng.choice((0.0, 7200.0, 1e5)), preemptions=rng.choice((0, 0, 5)), preemptible=rng.random() < 0.9,
    )  # fmt: skip
    saved_s = rng.choice((math.inf, NOW - 50.0))
    return Run(job=job, placement=((f"n{node}", gpus),), started_s=NOW - rng.uniform(0.0, 5000.0), saved_s=saved_s, restart_s=60.0)


def world(rng):
    """(what is free, the arranged victims, the runs by id)."""
    grid = Grid(ClusterView(nodes=tuple(Node(id=f"n{i}", cpu_units=8 * CPU_UNITS, gpus=8) for i in range(NODES))))
    victims, runs = Victims(NOW, POLICY, {}), {}
    for node in range(NODES):
        while (gpus := rng.choice((1, 2, 4))) <= grid.gpus[node] and rng.random() < 0.9:
            run = a_run(rng, f"r{len(runs)}", node, gpus)
            grid.take(need(gpus), ((node, gpus),))
            victims.add(run, ((node, gpus),))
            runs[run.job.id] = run
    return grid, victims, runs


def a_claim(rng):
    tenant = rng.choice("abc")
    starved, in_turn = rng.random() < 0.2, rng.random() < 0.5
    return Claim(starved, rng.choice((0, 1)), tenant, rng.randrange(4), rng.random() < 0.7, TENANTS[tenant][1], in_turn)


@pytest.mark.parametrize("seed", range(40))
def test_a_claim_is_good_against_the_same_runs_at_the_same_times(seed):
    rng = random.Random(seed)
    _, victims, _ = world(rng)
    for _ in range(20):
        claim = a_claim(rng)
        times = {victim.run.job.id: evictable_from(claim, victim, POLICY, TENANTS[victim.run.job.tenant]) for victim in victims}
        found = {victim.run.job.id for victim in victims.of(victims.open_to(claim, TENANTS))}
        assert found == {name for name, time in times.items() if time <= NOW}
        next_at = min((time for time in times.values() if time > NOW), default=math.inf)
        assert victims.next_at(claim, TENANTS) <= next_at, "a second reason to evict a run may come before that"
        assert victims.next_at(claim, TENANTS) == next_at or claim.in_turn


@pytest.mark.parametrize("seed", range(40))
def test_one_eviction_after_the_other_costs_as_little_as_if_all_were_looked_at(seed):
    rng = random.Random(seed)
    grid, victims, _ = world(rng)
    for _ in range(12):
        gpus, classes = rng.choice((1, 2, 4, 8)), victims.open_to(a_claim(rng), TENANTS)
        fresh = cheapest(grid, need(gpus), grid.everywhere, victims.of(classes))
        found = victims.on_one(grid, need(gpus), grid.everywhere, classes)
        if any(free >= gpus for free in grid.gpus):
            victims.touched(((0, 0),) if found is None else ((found[0], 0),))
            continue  # it needs nobody to leave
        assert (fresh is None) == (found is None)
        if fresh is not None and found is not None:
            assert sum(victim.cost for victim in found[1]) == pytest.approx(sum(victim.cost for victim in fresh[0]))
            for victim in found[1]:
                grid.give(victim.run.job.demand, victim.place)
                victims.spare(victim.run.job.id, victim.place)
            grid.take(need(gpus), ((found[0], gpus),))
            victims.touched(((found[0], gpus),))


def test_who_has_left_is_not_a_victim_again():
    victims = Victims(NOW, POLICY, {})
    run = Run(job=Job(id="r", demand=need(8), submitted_s=0.0, queued_s=0.0), placement=(("n0", 8),), started_s=0.0)
    victims.add(run, ((0, 8),))
    (victim,) = list(victims)
    victims.spare(victim.run.job.id, victim.place)
    assert not list(victims) and not victims.of(1)
