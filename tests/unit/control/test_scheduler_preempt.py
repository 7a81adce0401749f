"""Who makes room for whom."""

from __future__ import annotations

import math

import pytest

from orchestrator.control.scheduler.clearing import cheapest
from orchestrator.control.scheduler.model import CPU_UNITS, ClusterView, Demand, Job, Node, Policy, Run
from orchestrator.control.scheduler.place import Grid
from orchestrator.control.scheduler.preempt import ALONE, Claim, Victim, cost, evictable_from, protected_until

POLICY = Policy(mode="preemptive", min_run_s=100.0, max_doublings=3, max_preemptions=5, max_total_wait_s=1e4)


def need(gpus):
    return Demand(num_workers=gpus, cpu_units=CPU_UNITS, gpus=1)


def run(name, *bundles, price=1.0, **more):
    """`bundles`: (node, GPUs); it loses `price` seconds."""
    of_run = {key: more.pop(key) for key in ("leaving", "growing", "saved_s", "save_s") if key in more}
    job = Job(id=name, demand=need(sum(count for _, count in bundles)), submitted_s=0.0, queued_s=0.0, **more)
    placement = tuple((f"n{i}", count) for i, count in bundles)
    return Run(job=job, placement=placement, started_s=1000.0, restart_s=price, **{"saved_s": math.inf, **of_run})


def victims(*runs):
    return [
        Victim(each, tuple((int(node[1:]), count) for node, count in each.placement), cost(each, 2000.0), (0, each.attained(2000.0)))
        for each in runs
    ]


def cheapest_for(gpus, nodes, *runs):
    view = ClusterView(nodes=tuple(Node(id=f"n{i}", cpu_units=8 * CPU_UNITS, gpus=8) for i in range(nodes)))
    grid, may_leave = Grid(view), victims(*runs)
    for victim in may_leave:
        grid.take(victim.run.job.demand, victim.place)
    found = cheapest(grid, need(gpus), grid.everywhere, may_leave)
    return None if found is None else (sorted(victim.run.job.id for victim in found[0]), found[1])


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ({}, 1100.0),
        ({"preemptions": 2}, 1400.0),
        ({"preemptions": 4}, 1800.0),  # three doublings at most
        ({"preemptions": 5}, math.inf),
        ({"preemptible": False}, math.inf),
        ({"leaving": True}, math.inf),
        ({"growing": True}, math.inf),
        ({"waited_s": 2e4, "ran_s": 5e3}, 16_100.0),  # until it ran as long as it waited, and a while more
    ],
)
def test_until_when_a_run_is_left_alone(more, expected):
    assert protected_until(run("r", (0, 1), **more), POLICY) == expected


def test_a_preemption_costs_what_was_not_saved_and_the_save_and_the_next_start():
    assert cost(run("r", (0, 8), saved_s=1900.0, price=62.0, save_s=3.0), 2000.0) == 8 * (100.0 + 62.0 + 3.0)
    assert cost(run("r", (0, 8), saved_s=None, price=0.0), 2000.0) == 8 * 1000.0
    assert cost(run("r", (0, 8), price=62.0), 2000.0) == 8 * 62.0


def claim(starved=False, priority=0, tenant="", level=0, within=True, rank=0, in_turn=False):
    return Claim(starved, priority, tenant, level, within, rank, in_turn)


A, B, OLD = {"tenant": "a"}, {"tenant": "b"}, {"attained": 1e9}


@pytest.mark.parametrize(
    ("claim", "more", "footing", "expected"),
    [
        (claim(), {}, ALONE, 1000.0 + 7200 / 8),  # when the run has left level 0
        (claim(), {"attained": 7200.0}, ALONE, 1100.0),
        (claim(level=1), {"attained": 7200.0}, ALONE, 1000.0 + 64_800 / 8),
        (claim(level=3), OLD, ALONE, math.inf),
        (claim(priority=1), {}, ALONE, 1100.0),
        (claim(), {"priority": 1, **OLD}, ALONE, math.inf),
        (claim(starved=True), {"priority": 1}, ALONE, 1100.0),
        (claim(starved=True, in_turn=True), {"priority": 1}, ALONE, 1000.0 + 2 * 3600),  # after its turn
        (claim(starved=True, in_turn=True), {"attained": 7200.0}, ALONE, 1100.0),  # or by its level
        (claim(**A, rank=1), B, (True, 0), 1100.0),  # within its share, against one that is over its own
        (claim(**A, within=False), B | OLD, (True, 1), math.inf),
        (claim(**A), B | OLD, (False, 1), 1100.0),  # both within: by level, if its tenant comes first
        (claim(**A, rank=1), B | OLD, (False, 0), math.inf),
        (claim(**B, within=False), B | OLD, (True, 0), 1100.0),  # of one tenant: by level
        (claim(**B, within=False), B | OLD, (False, 0), math.inf),  # the run would come back first, as its tenant stays within the share
    ],
)
def test_whom_a_claim_is_good_against(claim, more, footing, expected):
    (victim,) = victims(run("r", (0, 8), **more))
    assert evictable_from(claim, victim, POLICY, footing) == expected


def test_the_cheapest_set_on_one_node():
    dear = [run("a", (0, 8), price=1.0)]
    cheap = [run("b", (1, 2), price=9.0), run("c", (1, 4), price=0.5), run("d", (1, 2), price=0.2)]
    assert cheapest_for(6, 2, *dear, *cheap) == (["c", "d"], ((1, 6),))
    assert cheapest_for(8, 2, *dear, *cheap) == (["a"], ((0, 8),))
    assert cheapest_for(2, 2, *dear, *cheap) == (["d"], ((1, 2),))
    assert cheapest_for(9, 1, *dear) is None


def test_of_equal_cost_the_fewest_leave_then_those_of_the_lowest_rank():
    ones = [run(f"one{i}", (0, 1)) for i in range(8)]
    assert cheapest_for(8, 2, *ones, run("eight", (1, 8))) == (["eight"], ((1, 8),))
    assert cheapest_for(1, 1, run("a", (0, 4)), run("b", (0, 4), attained=5.0)) == (["a"], ((0, 1),))


def test_a_large_gang_clears_the_cheapest_nodes():
    runs = [run("a", (0, 8), price=3.0), run("b", (1, 8), price=1.0), run("c", (2, 5), price=1.0), run("d", (2, 3), price=1.0)]
    assert cheapest_for(16, 3, *runs) == (["b", "c", "d"], ((1, 8), (2, 8)))
    assert cheapest_for(12, 3, *runs) == (["b", "c"], ((1, 8), (2, 4)))
    assert cheapest_for(24, 3, *runs) == (["a", "b", "c", "d"], ((0, 8), (1, 8), (2, 8)))


def test_what_a_run_on_two_nodes_costs_is_counted_once():
    wide, one, other = run("wide", (0, 8), (1, 8), price=1.5), run("x", (2, 8), price=1.0), run("y", (3, 8), price=2.1)
    assert cheapest_for(16, 4, wide, one, other) == (["wide"], ((0, 8), (1, 8)))
    assert cheapest_for(8, 4, wide, one, other) == (["x"], ((2, 8),))
