"""Who comes next."""

from __future__ import annotations

import math
from dataclasses import replace
from random import Random

import pytest

from orchestrator.control.scheduler.estimate import Estimates
from orchestrator.control.scheduler.line import Line
from orchestrator.control.scheduler.model import CPU_UNITS, Demand, Job, Policy
from orchestrator.control.scheduler.order import Turns, fifo_key, key, level, patience_s, remaining

POLICY = Policy(mode="preemptive", max_wait_s=1000.0, max_total_wait_s=5000.0)
ESTIMATES = Estimates({("", 1): (600.0,), ("", 8): (600.0,), ("a", 1): (600.0,), ("b", 1): (600.0,)})
NOW = 2000.0


def job(name, gpus=1, queued_s=1900.0, submitted_s=0.0, **more):
    demand = Demand(num_workers=gpus, cpu_units=CPU_UNITS, gpus=1)
    return Job(id=name, demand=demand, submitted_s=submitted_s, queued_s=queued_s, **more)


def starves_at(found, policy, widest=math.inf):
    return found.queued_s + patience_s(found, policy, widest)


def ordered(*jobs, policy=POLICY, ranks=()):
    def of(found):
        return key(found, starves_at(found, policy) <= NOW, policy, dict(ranks), ESTIMATES)

    return [found.id for found in sorted(jobs, key=of)]


@pytest.mark.parametrize(
    "first, second",
    [
        (job("x", gpus=8, queued_s=900.0), job("y", priority=5)),  # starved
        (job("x", gpus=8, queued_s=800.0), job("y", queued_s=900.0)),  # both are: the one that waits longer
        (job("x", queued_s=900.0), job("y", queued_s=800.0, ran_s=10.0)),  # and who has not run
        (job("x", priority=1, attained=1e6), job("y", priority=0)),
        (job("x", attained=1e6, tenant="a"), job("y", tenant="b")),  # the rank of its tenant
        (job("x", gpus=8), job("y", attained=7200.0)),  # level
        (job("x", gpus=1), job("y", gpus=8)),  # expected remaining service
        (job("x", attained=300.0), job("y", attained=400.0)),  # 300 remain; 400, as many as it had
        (job("x", submitted_s=1.0), job("y", submitted_s=2.0)),
        (job("x"), job("y")),
    ],
)
def test_each_rule_decides_where_those_before_it_are_even(first, second):
    ranks = {"a": 0, "b": 1}
    assert ordered(second, first, ranks=ranks.items()) == ["x", "y"]


def test_without_preemption_the_level_does_not_count():
    batch = Policy(mode="batch", max_wait_s=1000.0)
    assert ordered(job("x", gpus=8), job("y", attained=300.0), policy=batch) == ["y", "x"]


def test_a_job_starves_by_one_wait_or_by_all_of_them():
    assert starves_at(job("x", queued_s=100.0), POLICY) == 1100.0
    assert starves_at(job("x", queued_s=100.0, waited_s=4700.0), POLICY) == 400.0
    assert starves_at(job("x", queued_s=100.0, waited_s=9000.0), POLICY) == 100.0
    assert starves_at(job("x", queued_s=100.0, waited_s=9000.0, ran_s=9500.0), POLICY) == 600.0, "it ran longer than it waited"


def test_a_gang_that_is_larger_than_any_node_starves_sooner():
    policy = Policy(mode="batch", max_wait_s=1000.0, max_gang_wait_s=500.0)
    assert [starves_at(job("x", gpus, queued_s=0.0), policy, widest=8) for gpus in (8, 16)] == [1000.0, 500.0]
    assert starves_at(job("x", 16, queued_s=0.0), Policy(max_wait_s=100.0, max_gang_wait_s=500.0), widest=8) == 100.0


def test_levels_and_what_remains():
    assert [level(service, POLICY) for service in (0.0, 7199.0, 7200.0, 72_000.0, 1e9)] == [0, 0, 1, 2, 3]
    assert [remaining(job("x", attained=had), ESTIMATES) for had in (0.0, 200.0, 300.0, 5000.0)] == [600.0, 400.0, 300.0, 5000.0]


def test_first_in_first_out():
    assert sorted([job("b", queued_s=1.0), job("a", queued_s=1.0), job("c", queued_s=0.0)], key=fifo_key)[0].id == "c"


@pytest.mark.parametrize("seed", range(20))
def test_jobs_that_are_put_in_order_together_stand_as_each_would_alone(seed):
    rng, queue = Random(seed), []
    for number in range(60):
        at = rng.choice((900.0, 1000.0, 1500.0, 1900.0))
        tenant, priority = rng.choice(("a", "b")), rng.choice((0, 0, 1))
        one = job(f"j{number}", rng.choice((1, 8)), queued_s=at, submitted_s=at, tenant=tenant, priority=priority)
        had = {"attained": rng.choice((100.0, 8000.0)), "ran_s": 100.0, "waited_s": rng.choice((0.0, 4200.0))}
        queue.append(replace(one, **had) if rng.randrange(3) == 2 else replace(one, limit_s=rng.choice((None, 60.0))))
    ranks, order = {"a": 0, "b": 1}, lambda one: key(one, starves_at(one, POLICY, 4) <= NOW, POLICY, ranks, ESTIMATES)
    line = Line()
    line.follow(queue)
    turns = Turns(line, NOW, POLICY, ranks, ESTIMATES, 4)
    jobs = [one for block in turns.blocks for one in block.jobs]
    assert jobs == sorted(queue, key=order) and [name for block in turns.blocks for name in block.ids] == [one.id for one in jobs]
    assert turns.starved == {one.id for one in queue if starves_at(one, POLICY, 4) <= NOW}
    patient = [one for one in jobs if one.id not in turns.starved]
    assert turns.starve_next(()) == min(starves_at(one, POLICY, 4) for one in patient)
    rng.shuffle(patient)
    for number in range(0, len(patient) - 5, 5):
        assert turns.starve_next([one.id for one in patient[number : number + 5]]) == min(
            starves_at(one, POLICY, 4) for one in patient[number + 5 :]
        )
