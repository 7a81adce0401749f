"""What comes of the parts together: backfilling, preemption, a place cleared for a starved gang, resizing, shares."""

from __future__ import annotations

import math

import pytest

from orchestrator.control.scheduler import ClusterView, Demand, Job, Policy, Run, Usage, plan
from orchestrator.control.scheduler.model import CPU_UNITS, Node, Resize, Tenant

NOW = 100_000.0
BATCH = Policy(mode="batch", max_wait_s=1e6)
PREEMPTIVE = Policy(mode="preemptive", max_wait_s=28_800.0, reserve_after_s=28_800.0, min_run_s=1800.0)
ESTIMATE = Usage(history={("", gpus): (1000.0,) for gpus in (1, 2, 4, 8, 16)})
"""Half of the jobs end after 1,000 s, 90 % after 2,000 s."""


def nodes(count):
    return ClusterView(nodes=tuple(Node(id=f"n{i}", cpu_units=8 * CPU_UNITS, gpus=8) for i in range(count)))


def need(gpus):
    return Demand(num_workers=gpus, cpu_units=CPU_UNITS, gpus=1)


def waits(name, gpus, since_s=NOW - 10, **more):
    return Job(id=name, demand=need(gpus), submitted_s=since_s, queued_s=since_s, **more)


def runs(name, gpus, *places, started_s=NOW - 100, leaving=False, may_grow=False, workers=None, **more):
    job = Job(id=name, demand=need(gpus), submitted_s=started_s, queued_s=started_s, **more)
    placement = tuple((f"n{i}", (workers or gpus) // len(places)) for i in places)
    return Run(job=job, placement=placement, started_s=started_s, saved_s=math.inf, restart_s=62.0, leaving=leaving, may_grow=may_grow)


def decide(count, queue, running=(), policy=PREEMPTIVE, usage=ESTIMATE):
    forward = plan(nodes(count), tuple(queue), tuple(running), usage, NOW, policy)
    assert plan(nodes(count), tuple(queue)[::-1], tuple(running)[::-1], usage, NOW, policy) == forward
    return forward


def starts(decided):
    return {start.job_id: start.placement for start in decided.starts}


def evicted(decided):
    return [(order.job_id, order.for_job) for order in decided.preempts]


def test_a_reserved_place_is_used_only_by_who_leaves_in_time():
    queue = [waits("big", 16, NOW - 99), waits("short", 8, NOW - 50, limit_s=1500.0), waits("long", 8, NOW - 40, limit_s=5000.0)]
    decided = decide(2, queue, [runs("r", 8, 0)], Policy(mode="batch", max_wait_s=60.0))
    (kept,) = decided.reservations
    assert (kept.job_id, kept.start_s, kept.placement) == ("big", NOW + 1900.0, (("n0", 8), ("n1", 8)))
    assert starts(decided) == {"short": (("n1", 8),)} and decided.order == ("big", "long")
    assert decided.reasons["big"] == (
        "needs 16 x 1 CPU and 1 GPU; 0 CPUs and 0 GPUs are free on 2 nodes, held by r, short; has a place reserved in 1900 s at the latest"
    )
    assert decided.next_change_at == NOW + 20.0, "then `long` is starved"


def test_before_its_turn_has_come_long_ago_nothing_is_kept_for_a_job():
    patient = Policy(mode="batch", max_wait_s=1e6, reserve_after_s=3600.0)
    decided = decide(2, [waits("big", 16), waits("small", 8, limit_s=5000.0, priority=-1)], [runs("r", 8, 0)], patient)
    assert "small" in starts(decided) and not decided.reservations and decided.next_change_at == NOW - 10 + 3600.0


def test_a_new_job_evicts_one_that_has_left_its_level_and_takes_its_place():
    old, young = runs("old", 8, 0, started_s=NOW - 5000), runs("young", 8, 1, started_s=NOW - 850)
    decided = decide(2, [waits("new", 8)], [old, young])
    assert evicted(decided) == [("old", "new")] and not decided.starts
    (order,), (kept,) = decided.preempts, decided.reservations
    assert order.cost == 8 * 62.0 and order.why == "makes room for new, which comes first; 496 GPU-seconds are lost"
    assert (kept.job_id, kept.start_s, kept.placement) == ("new", NOW + 60.0, (("n0", 8),))
    assert decided.reasons["new"] == "needs 8 x 1 CPU and 1 GPU; its place is being cleared by old"


def test_while_a_run_leaves_its_place_is_promised_and_nobody_else_leaves():
    gone = runs("old", 8, 0, started_s=NOW - 5000, leaving=True)
    decided = decide(2, [waits("new", 8), waits("next", 1, NOW - 5)], [gone, runs("other", 8, 1, started_s=NOW - 100)])
    assert not decided.preempts and not decided.starts
    assert [kept.job_id for kept in decided.reservations] == ["next"], "the smaller comes first"


@pytest.mark.parametrize("protected", [{"preemptible": False}, {"preemptions": 2}, {"started_s": NOW - 1000}])
def test_a_run_that_is_left_alone(protected):
    decided = decide(1, [waits("new", 8)], [runs("old", 8, 0, **{"started_s": NOW - 5000, **protected})])
    assert not decided.preempts
    until = {"preemptions": NOW - 5000 + 4 * 1800, "started_s": NOW + 800}.get(next(iter(protected)), NOW - 10 + 28_800)
    assert decided.next_change_at == until


def test_no_eviction_that_gains_too_little():
    dear = Policy(mode="preemptive", gain_factor=30.0)
    old = [runs("old", 8, 0, started_s=NOW - 5000)]
    assert evicted(decide(1, [waits("new", 8)], old)) and not evicted(decide(1, [waits("new", 1)], old, dear))


def test_a_place_is_cleared_for_a_gang_that_is_starved_and_kept_until_it_is_empty():
    fresh = [runs("a", 8, 0, started_s=NOW - 1000), runs("b", 8, 1, started_s=NOW - 1500), runs("c", 8, 2, started_s=NOW - 10)]
    queue = [waits("gang", 16, NOW - 28_800.0, attained=1e7), waits("new", 8, priority=9)]
    decided = decide(3, queue, fresh)
    (kept,) = decided.reservations
    assert (kept.job_id, kept.start_s, kept.placement) == ("gang", NOW + 800.0, (("n0", 8), ("n1", 8)))
    assert not decided.preempts and decided.next_change_at == NOW + 300.0
    due = plan(nodes(3), tuple(queue), tuple(fresh), ESTIMATE, NOW + 800.0, PREEMPTIVE)
    assert sorted(evicted(due)) == [("a", "gang"), ("b", "gang")]
    assert due.preempts[0].why.startswith("makes room for gang, which has waited too long")


def test_who_was_evicted_does_not_evict_in_turn():
    new, old = runs("new", 8, 0, started_s=NOW - 3600), waits("old", 8, attained=1e6)
    assert not decide(1, [old], [new]).preempts


ELASTIC = {"smaller": (2, 4)}


def test_a_running_job_shrinks_rather_than_that_one_leaves():
    elastic = runs("e", 8, 0, started_s=NOW - 5000, **ELASTIC)
    decided = decide(1, [waits("new", 4)], [elastic])
    assert decided.resizes == (Resize(job_id="e", workers=4, placement=(("n0", 4),), for_job="new"),)
    assert not decided.preempts and not decided.starts and decided.reservations[0].job_id == "new"
    assert not decide(1, [waits("new", 4)], [runs("e", 8, 0, resized_s=NOW - 60, started_s=NOW - 60, **ELASTIC)]).resizes
    assert decide(1, [waits("new", 8)], [elastic]).resizes == (), "no legal size leaves 8 GPUs"


def test_who_shrinks_for_one_is_not_evicted_for_another():
    elastic = runs("e", 8, 0, started_s=NOW - 5000, **ELASTIC)
    decided = decide(1, [waits("new", 4), waits("next", 8)], [elastic])
    assert [order.for_job for order in decided.resizes] == ["new"] and not decided.preempts


def test_a_job_starts_with_fewer_workers_than_it_asks_for_but_with_a_legal_number():
    assert starts(decide(1, [waits("e", 8, **ELASTIC)], [runs("r", 3, 0)])) == {"e": (("n0", 4),)}
    assert starts(decide(1, [waits("e", 8, **ELASTIC)], [runs("r", 5, 0)])) == {"e": (("n0", 2),)}


def test_what_a_job_of_one_size_asked_for_in_vain_an_elastic_one_starts_without():
    queue = [waits("rigid", 4, NOW - 20), waits("elastic", 4, smaller=(1, 2))]
    assert starts(decide(1, queue, [runs("r", 5, 0)])) == {"elastic": (("n0", 2),)}


def test_a_job_grows_when_nobody_waits():
    small = runs("e", 4, 0, workers=2, started_s=NOW - 5000, may_grow=True, smaller=(2,), larger=(6, 8))
    (order,) = decide(1, [], [small]).resizes
    assert (order.workers, order.placement) == (8, (("n0", 8),))
    assert [order.workers for order in decide(1, [], [small, runs("r", 1, 0)]).resizes] == [6]
    assert decide(1, [], [runs("e", 4, 0, workers=2, started_s=NOW - 60, may_grow=True)]).next_change_at == NOW - 60 + 1800
    quota = Policy(mode="preemptive", tenants={"": Tenant(quota=5)})
    assert [order.workers for order in decide(1, [], [small], quota).resizes] == [4]


def test_a_tenant_within_its_share_comes_before_one_that_is_over():
    queue = [waits("a1", 4, tenant="a"), waits("b1", 4, tenant="b")]
    over = runs("a0", 8, 0, tenant="a", started_s=NOW - 100)
    decided = decide(2, queue, [over, runs("b0", 4, 1, tenant="b")], usage=Usage(charged={"a": 0.0, "b": 1e9}))
    assert starts(decided) == {"b1": (("n1", 4),)}, "though b has used more"


def test_a_tenant_within_its_share_evicts_one_that_is_over():
    over = [runs("a0", 8, 0, tenant="a", started_s=NOW - 2000), runs("a1", 8, 1, tenant="a", started_s=NOW - 1000)]
    assert evicted(decide(2, [waits("b0", 4, tenant="b", attained=1e6)], over)) == [("a0", "b0")]
    assert not evicted(decide(2, [waits("b0", 16, tenant="b", attained=1e6)], over)), "it would be over its share itself"


def test_a_quota_keeps_only_its_own_tenant():
    policy = Policy(mode="batch", tenants={"a": Tenant(quota=4)})
    decided = decide(1, [waits("a0", 8, NOW - 99, tenant="a"), waits("b0", 8, tenant="b")], policy=policy)
    assert starts(decided) == {"b0": (("n0", 8),)}
    assert decided.reasons["a0"] == "needs 8 of the quota of a: 0 of 4 are in use"
