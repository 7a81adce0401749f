"""Each property sees the plan that breaks it, and finds nothing amiss in one that does not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
from scheduling import properties
from scheduling.by_hand import BATCH, PREEMPTIVE, TWO, job, moment, need, node, run
from scheduling.strategies import NOW, Moment

from orchestrator.control.scheduler.model import (
    ClusterView,
    Job,
    Plan,
    Policy,
    Preempt,
    Reservation,
    Resize,
    Start,
    Tenant,
)


@dataclass
class Fixed:
    """Plans the same once, and then nothing."""

    plan: Plan

    def __call__(self, cluster: ClusterView, queue: Any, running: Any, usage: Any, now: float, policy: Policy) -> Plan:
        return self.plan


def starts(*places: tuple[str, tuple[tuple[str, int], ...]], **more: Any) -> Plan:
    return Plan(starts=tuple(Start(job_id=name, placement=placement) for name, placement in places), **more)


def waits(*names: str, **more: Any) -> Plan:
    return Plan(order=names, reasons=dict.fromkeys(names, "because"), **more)


def evicts(*names: str, by: str = "q", cost: float = 1.0) -> Plan:
    return waits(by, preempts=tuple(Preempt(job_id=name, for_job=by, cost=cost) for name in names))


FULL = (run("r", ("n0", 4)), run("s", ("n1", 4)))
Q4 = job("q", 4)

BROKEN: list[tuple[Callable[..., Any], Moment, Plan]] = [
    (properties.no_gpu_in_two_jobs, moment(Q4, running=FULL), starts(("q", (("n0", 4),)))),
    (properties.no_gpu_in_two_jobs, moment(Q4, job("p", 4)), starts(("q", (("n0", 4),)), ("p", (("n0", 4),)))),
    (properties.no_gpu_in_two_jobs, moment(Q4), starts(("q", (("n9", 4),)))),
    (properties.no_gpu_in_two_jobs, moment(Q4, cluster=ClusterView(nodes=(node("n0", draining=True),))), starts(("q", (("n0", 4),)))),
    (properties.orders_are_possible, moment(), starts(("q", (("n0", 4),)))),
    (properties.orders_are_possible, moment(Q4, running=(run("r", ("n0", 4), leaving=True),)), evicts("r")),
    (properties.orders_are_possible, moment(Q4, running=FULL), evicts("r", "r")),
    (properties.all_or_nothing, moment(Q4), starts(("q", (("n0", 3),)))),
    (properties.all_or_nothing, moment(Q4), starts(("q", (("n0", 4), ("n1", 0))))),
    (
        properties.sizes_are_legal,
        moment(running=(run("r", ("n0", 2), larger=(4,)),)),
        waits(resizes=(Resize(job_id="r", workers=3, placement=(("n0", 3),)),)),
    ),
    (
        properties.sizes_are_legal,
        moment(running=(run("r", ("n0", 2), larger=(4,), resized_s=NOW - 60),)),
        waits(resizes=(Resize(job_id="r", workers=4, placement=(("n0", 4),)),)),
    ),
    (properties.topology_is_kept, moment(job("q", 4, demand=need(4, group=4))), starts(("q", (("n0", 2), ("n1", 2))))),
    (properties.topology_is_kept, moment(job("q", 4, demand=need(4, max_workers_per_node=2))), starts(("q", (("n0", 4),)))),
    (properties.topology_is_kept, moment(Q4), starts(("q", (("n0", 2), ("n1", 2))))),
    (
        properties.quotas_are_kept,
        moment(job("q", 4, tenant="a"), policy=replace(BATCH, tenants={"a": Tenant(quota=3)})),
        starts(("q", (("n0", 4),))),
    ),
    (
        properties.quotas_are_kept,
        moment(job("q", 2), job("p", 2), policy=replace(BATCH, tenants={"": Tenant(jobs_per_user=1)})),
        starts(("q", (("n0", 2),)), ("p", (("n0", 2),))),
    ),
    (properties.each_that_waits_knows_why, moment(Q4, running=FULL), Plan(order=("q",))),
    (properties.each_that_waits_knows_why, moment(Q4, running=FULL), Plan(reasons={"q": "full"})),
    (
        properties.each_that_waits_knows_why,
        moment(Q4, running=FULL),
        waits("q", reservations=(Reservation(job_id="q", start_s=NOW - 1, placement=(("n0", 4),)),)),
    ),
    (properties.work_conserving, moment(Q4, running=FULL[:1]), waits("q")),
    (properties.victims_may_be_preempted, moment(Q4, running=FULL), evicts("r")),
    (properties.victims_may_be_preempted, moment(Q4, running=(run("r", ("n0", 4), ran=60),), policy=PREEMPTIVE), evicts("r")),
    (properties.victims_may_be_preempted, moment(Q4, running=(run("r", ("n0", 4), preemptions=3),), policy=PREEMPTIVE), evicts("r")),
    (properties.victims_may_be_preempted, moment(Q4, running=(run("r", ("n0", 4), preemptible=False),), policy=PREEMPTIVE), evicts("r")),
    (properties.victims_are_few, moment(Q4, running=FULL, policy=PREEMPTIVE), evicts("r", "s")),
    (properties.victims_are_few, moment(job("q", 8), running=FULL, policy=PREEMPTIVE), evicts("r")),
    (properties.order_is_kept, moment(job("q", 4, priority=1), job("p", 4), running=FULL[:1]), starts(("p", (("n1", 4),)), order=("q",))),
    (
        properties.no_tenant_waits_below_its_share,
        moment(job("q", 4, tenant="a"), running=FULL, policy=PREEMPTIVE),
        waits("q"),
    ),
    (properties.victims_make_room, moment(Q4, running=FULL, policy=PREEMPTIVE), evicts("r")),
    (properties.nothing_is_left_to_do, moment(Q4, running=FULL, policy=PREEMPTIVE), evicts("r")),
    (properties.next_change_is_right, moment(Q4, running=FULL), waits("q", next_change_at=NOW)),
]
CASES = [pytest.param(*case, id=f"{case[0].__name__}-{number}") for number, case in enumerate(BROKEN)]


@pytest.mark.parametrize(("holds", "at", "plan"), CASES)
def test_a_broken_plan_is_seen(holds: properties.Property, at: Moment, plan: Plan):
    assert list(holds(replace(at, planner=Fixed(plan)), plan))


def test_one_that_depends_on_the_order_is_seen():
    at = moment(job("q", 4), job("p", 4), running=FULL, cluster=TWO)

    def first(cluster: ClusterView, queue: tuple[Job, ...], *_: Any) -> Plan:
        return waits(*(one.id for one in queue))

    seen = replace(at, planner=first)
    assert list(properties.deterministic(seen, seen.plan()))


def test_one_that_decides_before_it_said_is_seen():
    def restless(cluster: ClusterView, queue: Any, running: Any, usage: Any, now: float, policy: Policy) -> Plan:
        return waits("q", next_change_at=NOW + 60) if now == NOW else evicts("r")

    seen = replace(moment(Q4, running=FULL, policy=PREEMPTIVE), planner=restless)
    assert list(properties.next_change_is_right(seen, seen.plan()))


def test_one_that_remembers_is_seen():
    at = moment(job("q", 4), running=FULL)
    calls: list[int] = []

    def counting(*_: Any) -> Plan:
        calls.append(1)
        return waits("q", next_change_at=NOW + len(calls))

    seen = replace(at, planner=counting)
    assert list(properties.equal_from_what_is_stored(seen, seen.plan()))


@pytest.mark.parametrize("holds", properties.PROPERTIES, ids=lambda holds: holds.__name__)
def test_a_good_plan_passes(holds: properties.Property):
    quiet = moment(Q4, running=FULL)
    plan = waits("q", reservations=(Reservation(job_id="q", start_s=NOW + 60, placement=(("n0", 4),)),))
    assert not list(holds(replace(quiet, planner=Fixed(plan)), plan))
