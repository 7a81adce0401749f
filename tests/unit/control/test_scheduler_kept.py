"""What is kept from plan to plan is as if it were made anew."""

from __future__ import annotations

import math
from dataclasses import replace
from random import Random

import pytest

from orchestrator.control.scheduler.admit import Accounts, Tally
from orchestrator.control.scheduler.line import Line, block_of, without
from orchestrator.control.scheduler.model import CPU_UNITS, ClusterView, Demand, Job, Node, Policy, Run, Tenant
from orchestrator.control.scheduler.occupied import Occupied

POLICY = Policy(mode="preemptive", tenants={"a": Tenant(quota=4)})
OTHER = Policy(mode="preemptive", min_run_s=5.0)


def job(rng, number):
    at = float(rng.randrange(5))
    demand = Demand(num_workers=rng.choice((1, 2)), cpu_units=CPU_UNITS, gpus=1)
    had = {"ran_s": 5.0} if rng.random() < 0.2 else {"smaller": (1,)} if rng.random() < 0.1 else {}
    return Job(id=f"j{number}", demand=demand, submitted_s=at, queued_s=at, tenant=rng.choice("ab"), user=rng.choice("uv"), **had)


def changed(rng, members, new):
    """Some have gone, some have changed, some have come."""
    stay = [replace(one) if rng.random() < 0.1 else one for one in members if rng.random() < 0.7]
    return [*stay, *(new() for _ in range(rng.choice((0, 1, 20))))]


@pytest.mark.parametrize("seed", range(20))
def test_the_line_of_a_queue(seed):
    rng, line, queue, number = Random(seed), Line(), [], iter(range(10_000))
    for _ in range(15):
        queue = changed(rng, queue, lambda: job(rng, next(number)))
        rng.shuffle(queue)
        line.follow(queue)
        fresh = Line()
        fresh.follow(queue)
        kept, made = ({block.alike: block for block in one.blocks} for one in (line, fresh))
        assert kept == made and all(block.ids == [one.id for one in block.jobs] for block in kept.values())
        assert all(one is other for alike in kept for one, other in zip(kept[alike].jobs, made[alike].jobs, strict=True))
        assert sorted(one.id for one in line.others) == sorted(one.id for one in queue if not one.alike)


def a_run(rng, number, nodes):
    one, node = replace(job(rng, number), preemptions=rng.choice((0, 99))), rng.choice(nodes)
    flags = {name: rng.random() < 0.1 for name in ("leaving", "growing")}
    return Run(job=one, placement=((node.id, one.demand.num_workers),), started_s=float(rng.randrange(100)), **flags)


@pytest.mark.parametrize("seed", range(20))
def test_what_runs_hold(seed):
    rng, running, number = Random(seed), [], iter(range(10_000))
    cluster = ClusterView(nodes=tuple(Node(id=f"n{i}", cpu_units=8 * CPU_UNITS, gpus=8, draining=i == 3) for i in range(4)))
    occupied = Occupied(cluster)
    for _ in range(15):
        running = changed(rng, running, lambda: a_run(rng, next(number), cluster.nodes))
        policy = rng.choice((POLICY, OTHER))
        fresh = Occupied(cluster)
        for one in (occupied, fresh):
            one.follow(tuple(running))
        assert (occupied.grid.cpus, occupied.grid.gpus, occupied.grid.buckets) == (fresh.grid.cpus, fresh.grid.gpus, fresh.grid.buckets)
        for rows in ("runs", "leaving", "growing", "elastic"):
            assert sorted(run.job.id for run, _ in getattr(occupied, rows)) == sorted(run.job.id for run, _ in getattr(fresh, rows))
        kept, made = ({group: found for group, found in one.evictable(policy).items() if found} for one in (occupied, fresh))
        assert kept.keys() == made.keys()
        for group, timetable in kept.items():
            assert {id(row.run) for row in timetable.rows} == {id(row.run) for row in made[group].rows}
            for ground in range(len(policy.levels) + 2):
                times = sorted(row.times[ground] for row in timetable.rows)
                for now in (0.0, 50.0, 100.0, 1e4, 1e5):
                    assert timetable.next_at(ground, now) == made[group].next_at(ground, now)
                    assert timetable.next_at(ground, now) == min((time for time in times if time > now), default=math.inf)
                    assert timetable.any_at(ground, now) == (times[0] <= now)
        accounts, others = Accounts(POLICY, occupied.tally), Accounts(POLICY, Tally(running))
        assert vars(accounts) == vars(others)
        for tenant in "ab":
            rows = [run for run in running if run.job.tenant == tenant]
            assert accounts.charged.get(tenant, 0) == sum(run.width for run in rows)
            assert accounts.held.get(tenant, 0) == sum(run.width for run in rows if not run.leaving)


def test_who_was_kept_a_place_stands_alone_in_its_place():
    demand = Demand(num_workers=1, cpu_units=CPU_UNITS, gpus=1)
    jobs = [Job(id=name, demand=demand, submitted_s=0.0, queued_s=0.0) for name in "abcde"]
    old, redeemed = (replace(jobs[0], id=name, cleared=(("n", 1),)) for name in ("old", "redeemed"))
    blocks = [block_of(jobs, jobs[0].alike), block_of([redeemed, old])]
    found = without(blocks, [jobs[0], jobs[3], redeemed], [jobs[2]], lambda one: replace(one, cleared=(("m", 1),) if one.id == "c" else ()))
    assert [block.ids for block in found] == [["b"], ["c"], ["e"], ["old"]]
    assert [bool(block.alike) for block in found] == [True, False, True, True]
    assert found[1].jobs[0].cleared == (("m", 1),) and not found[3].jobs[0].cleared
