"""Moments at which the scheduler has once been wrong, as small as they could be made."""

from __future__ import annotations

from dataclasses import replace

from scheduling.by_hand import BATCH, PREEMPTIVE, job, moment, need, node, run
from scheduling.forms import after_leaving, applied
from scheduling.properties import next_change_is_right, victims_make_room
from scheduling.strategies import HOUR, NOW, Moment

from orchestrator.control.scheduler import explain
from orchestrator.control.scheduler.estimate import Estimates
from orchestrator.control.scheduler.explain import Explanation
from orchestrator.control.scheduler.model import CPU_UNITS, ClusterView, Tenant, Usage

LONG_AGO = 9.0 * HOUR
"""Who has waited since is starved."""
FULL_DAY = 24.0 * HOUR


def cluster(*gpus: int) -> ClusterView:
    return ClusterView(nodes=tuple(node(f"n{number}", count) for number, count in enumerate(gpus)))


def told(at: Moment, name: str) -> Explanation:
    return explain(name, at.cluster, at.queue, at.running, at.usage, at.now, at.policy)


def test_a_job_that_waits_for_one_that_is_leaving_has_a_reservation_in_every_mode():
    at = moment(job("q", 1), running=(run("r", ("n0", 1), leaving=True),), cluster=cluster(1))
    assert [kept.job_id for kept in at.plan().reservations] == ["q"]


def test_what_starts_now_may_be_preempted_later_and_the_next_change_says_so():
    old = job("old", 4, LONG_AGO + 60, tenant="a")
    new = replace(job("new", 8, LONG_AGO), attained=100_000.0)
    at = moment(old, new, cluster=cluster(8), policy=PREEMPTIVE)
    plan = at.plan()
    assert [start.job_id for start in plan.starts] == ["old"]
    assert plan.next_change_at is not None and plan.next_change_at <= NOW + at.policy.min_run_s


def test_what_starts_now_may_grow_later_and_the_next_change_says_so():
    at = moment(job("q", 2, larger=(4,)), cluster=cluster(4), policy=BATCH)
    assert at.plan().next_change_at == NOW + at.policy.resize_interval_s


def test_a_gang_that_fits_one_node_is_not_made_room_for_on_two_because_that_one_is_reserved():
    large = run("large", ("n0", 8), preemptible=False)
    small = run("small", ("n1", 2), ("n2", 1))
    at = moment(
        job("first", 8, LONG_AGO + 60), job("second", 4, LONG_AGO), running=(large, small), cluster=cluster(8, 2, 2), policy=PREEMPTIVE
    )
    assert not at.plan().preempts


def test_a_run_that_has_lost_a_node_is_not_resized():
    torn = run("torn", ("n0", 1), ("gone", 2), smaller=(1, 2), larger=(4,), may_grow=True)
    at = moment(job("q", 1, LONG_AGO), running=(torn,), cluster=cluster(1))
    assert not at.plan().resizes


def test_a_run_does_not_grow_beyond_its_quota():
    at = moment(
        running=(run("r", ("n0", 2), larger=(4,), tenant="a", may_grow=True),), policy=replace(BATCH, tenants={"a": Tenant(quota=3)})
    )
    assert not at.plan().resizes


def test_nobody_leaves_for_a_job_before_which_it_would_be_placed_again():
    usage = Usage(charged={"": 0.0, "c": 100_000.0}, charged_at_s=NOW)
    wide = run("wide", ("n1", 1), ("n2", 1), ("n3", 1), ran=FULL_DAY)
    others = job("b", 1, LONG_AGO + 60, tenant="b"), job("", 1, LONG_AGO)
    at = replace(
        moment(job("q", 1, 1, tenant="c"), *others, running=(wide,), cluster=cluster(1, 1, 1, 1, 1), policy=PREEMPTIVE), usage=usage
    )
    plan = at.plan()
    if plan.preempts:
        served = {start.job_id for start in after_leaving(applied(at, plan)).plan().starts}
        assert {order.for_job for order in plan.preempts} <= served


def test_a_job_of_the_same_user_does_not_take_the_quota_of_one_that_is_reserved():
    """The next plan would refuse the reserved one, and give its nodes to a third."""
    held = run("r", ("n1", 4), ran=600, preemptible=False)
    first, same_user, third = (
        job("first", 8, 3000, user="u", priority=1),
        job("same", 1, 2000, user="u", limit_s=60.0),
        job("third", 1, 1000, user="v"),
    )
    at = moment(first, same_user, third, running=(held,), policy=replace(BATCH, tenants={"": Tenant(jobs_per_user=1)}))
    plan = at.plan()
    assert [kept.job_id for kept in plan.reservations] == ["first"]
    assert [kept.job_id for kept in applied(at, plan).plan().reservations] == ["first"]


def test_a_start_is_predicted_behind_one_whose_place_is_being_cleared():
    at = moment(
        job("first", 1, LONG_AGO + 60, demand=need(1)), job("second", 2, LONG_AGO), running=(run("r", ("n0", 2)),), cluster=cluster(2),
        policy=PREEMPTIVE,
    )  # fmt: skip
    assert [order.for_job for order in at.plan().preempts] == ["first"]
    start_s = told(at, "second").start_s
    assert start_s is not None and start_s > NOW


def test_nobody_grows_while_it_is_explained_what_a_job_waits_for():
    growing = run("r", ("n0", 2), larger=(3,), may_grow=True)
    at = moment(job("q", 4), running=(growing,), cluster=cluster(4), policy=BATCH)
    assert (told(at, "q").holders, told(at, "q").with_workers) == (("r",), 2)


def test_first_in_first_out_fewer_workers_do_not_help_behind_another():
    at = moment(
        job("first", 4, 120), job("second", 2, 60), running=(run("r", ("n0", 3)),), cluster=cluster(4), policy=replace(BATCH, mode="fifo")
    )
    second = told(at, "second")
    assert second.with_workers is None
    assert second.start_s is not None and second.start_s >= (told(at, "first").start_s or 0.0) > NOW


def test_a_start_is_predicted_behind_one_for_which_another_shrinks():
    wide = run("wide", ("n1", 4), ("n2", 1), ran=FULL_DAY, smaller=(4,), preemptible=False)
    first, second = job("first", 4, LONG_AGO + 60, demand=need(4, group=4)), job("second", 12, LONG_AGO)
    at = moment(first, second, running=(run("r", ("n0", 4), ran=0), wide), cluster=cluster(4, 4, 4), policy=PREEMPTIVE)
    assert [order.for_job for order in at.plan().resizes] == ["first"]
    start_s = told(at, "second").start_s
    assert start_s is not None and start_s > NOW


def test_neither_fewer_workers_nor_time_help_against_a_quota_that_is_too_small():
    at = moment(job("q", 4, tenant="a"), cluster=cluster(8), policy=replace(BATCH, tenants={"a": Tenant(quota=3)}))
    assert told(at, "q").with_workers == 3
    assert told(at, "q").start_s is None


def test_fewer_workers_do_not_help_a_user_who_has_enough_jobs():
    at = moment(
        job("q", 4), running=(run("r", ("n0", 1)),), cluster=cluster(8), policy=replace(BATCH, tenants={"": Tenant(jobs_per_user=1)})
    )
    assert told(at, "q").with_workers is None


def test_tenants_that_have_used_the_same_change_places_as_soon_as_one_of_them_starts_something():
    """Then the other's job is the head, whose reservation leaves time for a third."""
    held = run("r", ("n1", 4), ran=600, tenant="c")
    short, head = job("short", 3, 600, limit_s=1.0 * HOUR), job("head", 4, 60)
    other, narrow = job("other", 8, 30, tenant="b"), job("narrow", 1, tenant="c", limit_s=1.5 * HOUR)
    at = replace(moment(short, head, other, narrow, running=(held,), policy=BATCH), usage=Usage(charged_at_s=NOW))
    assert [kept.job_id for kept in at.plan().reservations] == ["head"]
    assert not list(next_change_is_right(at, at.plan()))


def test_a_run_that_would_be_starved_as_soon_as_it_waits_is_left_alone():
    eager = replace(PREEMPTIVE, gain_factor=0.0)
    at = moment(job("q", 4, 60, priority=1), running=(run("r", ("n0", 4)),), cluster=cluster(4), policy=eager)
    waited = replace(at.running[0].job, waited_s=at.policy.max_total_wait_s)
    assert at.plan().preempts
    assert not replace(at, running=(replace(at.running[0], job=waited),)).plan().preempts


def test_tenants_that_have_used_the_same_do_not_make_a_plan_at_every_next_float():
    at = moment(job("q", 8, 60, tenant="b"), running=(run("r", ("n0", 4), ran=0, tenant="a"),), policy=BATCH)
    at = replace(at, usage=Usage(charged={"a": 100_000.0, "b": 100_000.0}, charged_at_s=NOW))
    change_at = at.plan().next_change_at
    assert change_at is not None and change_at >= NOW + 0.001


def test_of_those_that_leave_for_want_of_cpus_none_could_stay():
    """The cheaper one frees too few, the dearer one enough alone."""
    cheap = run("cheap", ("n0", 1), saved_s=NOW)
    dear = replace(run("dear", ("n0", 15)), saved_s=NOW)
    dear = replace(dear, job=replace(dear.job, demand=replace(need(15), gpus=0)))
    at = moment(job("q", 2, LONG_AGO), running=(cheap, dear), cluster=cluster(4), policy=PREEMPTIVE)
    assert [order.job_id for order in at.plan().preempts] == ["dear"]


def test_who_was_promised_a_place_has_it_though_another_comes_before_it_once_that_is_free():
    """Of the other's tenant was the run that left: now that tenant is under its share."""
    usage = Usage(charged={"a": 100_000.0, "b": 0.0}, charged_at_s=NOW)
    low = run("low", ("n0", 4), tenant="b")
    low = replace(low, job=replace(low.job, priority=-1))
    first, other = job("first", 4, 2, tenant="a"), job("other", 4, 600, tenant="b")
    eager = replace(PREEMPTIVE, gain_factor=0.0)
    nodes = ClusterView(nodes=(replace(node("n0", 8), cpu_units=4 * CPU_UNITS),))  # room for one, and a share of 4 for each
    at = replace(moment(first, other, running=(low,), cluster=nodes, policy=eager), usage=usage)
    plan = at.plan()
    assert [(order.job_id, order.for_job) for order in plan.preempts] == [("low", "first")]
    assert [start.job_id for start in after_leaving(applied(at, plan)).plan().starts] == ["first"]


def test_who_was_promised_a_place_has_it_though_a_quota_is_free_for_another_now():
    """The one run of the user of the other has made room: the other has been starved for longer."""
    mine = run("mine", ("n0", 2), ran=FULL_DAY, tenant="b")
    other, first = job("other", 3, LONG_AGO + 60, tenant="b"), job("first", 2, LONG_AGO, tenant="c")
    kept = run("kept", ("n0", 2), ran=600, preemptible=False)  # gone before the first would be
    policy = replace(PREEMPTIVE, tenants={"b": Tenant(jobs_per_user=1)})
    at = moment(other, first, running=(mine, kept), cluster=cluster(4), policy=policy)
    plan = at.plan()
    assert [(order.job_id, order.for_job) for order in plan.preempts] == [("mine", "first")]
    assert [start.job_id for start in after_leaving(applied(at, plan)).plan().starts] == ["first"]


def test_a_place_that_is_being_cleared_stays_the_same_though_more_are_leaving_now():
    """Placed anew where all of them leave, the first would take what the second needs."""
    wide, narrow = run("wide", ("n1", 1), ("n2", 1), ("n4", 1), ran=FULL_DAY), run("narrow", ("n0", 1), ran=FULL_DAY)
    wide = replace(wide, job=replace(wide.job, demand=replace(need(3), gpus=2)))
    old = run("old", ("n3", 1), ran=FULL_DAY)
    old = replace(old, job=replace(old.job, attained=1_000_000.0), saved_s=0.0)
    first, second = job("first", 2, LONG_AGO + 60), job("second", 4, LONG_AGO)
    first = replace(first, demand=replace(need(2), gpus=2))
    at = moment(first, second, running=(wide, narrow, old), cluster=cluster(2, 2, 2, 2, 2), policy=PREEMPTIVE)
    plan = at.plan()
    assert {order.for_job for order in plan.preempts} == {"first", "second"}
    again = applied(at, plan).plan()
    assert not again.preempts and again.reservations == plan.reservations


def test_what_one_who_leaves_last_frees_is_taken_in_the_same_plan():
    """Before it was told to leave, nothing was to spare on its node beside what was promised there to the first."""
    nodes = ClusterView(nodes=tuple(replace(node(f"n{number}", 8), cpu_units=2 * CPU_UNITS) for number in range(4)))
    half = replace(need(1), cpu_units=CPU_UNITS // 2)
    cheap, dear = run("cheap", ("n0", 2), ran=FULL_DAY, saved_s=NOW), run("dear", ("n1", 4), ("n2", 1), ran=FULL_DAY, saved_s=NOW - 60)
    dear = replace(dear, job=replace(dear.job, demand=replace(half, num_workers=5)))
    first = replace(job("first", 10, LONG_AGO + 60), demand=replace(half, num_workers=10, gpus=2, group=2))
    second, last = replace(job("second", 4, LONG_AGO), demand=replace(half, num_workers=4)), job("last", 1)
    at = moment(first, second, last, running=(cheap, dear), cluster=nodes, policy=PREEMPTIVE)
    plan = at.plan()
    assert [order.for_job for order in plan.preempts] == ["first", "second"]
    again = applied(at, plan).plan()
    assert not again.starts and not again.preempts


def test_an_estimate_that_has_just_been_overrun_is_over_whatever_is_rounded():
    """Else the next change would be now, and none would be told."""
    began, estimates = 5102.505655827243, Estimates({("", 1): (7200.0,)})
    now = began + 14_400.0
    assert now - began < 14_400.0
    assert estimates.ends_s(job("r", 1), began, now) == began + 28_800.0


def test_what_a_run_is_growing_into_counts_for_the_quota():
    first = run("r0", ("n0", 2), larger=(3,), tenant="a", may_grow=True)
    second = run("r1", ("n1", 1), larger=(2,), tenant="a", may_grow=True)
    at = moment(running=(first, second), policy=replace(BATCH, tenants={"a": Tenant(quota=4)}))
    assert [order.job_id for order in at.plan().resizes] == ["r0"]
    assert not applied(at, at.plan()).plan().resizes


def test_a_place_that_is_being_left_is_not_promised_to_one_that_can_start_once_a_reservation_has_made_way_for_it():
    """The reservation goes where the place that is promised is not, and leaves free what it had kept from the job."""
    nodes = ClusterView(nodes=tuple(replace(node(f"n{number}", 8), cpu_units=2 * CPU_UNITS) for number in range(3)))
    runs = (run("r1", ("n1", 2), ("n2", 1)), run("r3", ("n2", 1), leaving=True), run("r5", ("n0", 1), ran=FULL_DAY))
    first, second = job("first", 3, LONG_AGO), job("second", 1, ran_s=FULL_DAY, demand=replace(need(1), gpus=2))
    at = moment(first, second, running=runs, cluster=nodes, policy=BATCH)
    plan = at.plan()
    assert [start.job_id for start in plan.starts] == ["second"] and [kept.job_id for kept in plan.reservations] == ["first"]
    assert not applied(at, plan).plan().starts


def test_who_comes_above_its_share_by_a_start_may_be_evicted_in_the_same_plan():
    old, other = (run(name, (on, 3), tenant=name[0], ran=FULL_DAY, saved_s=NOW) for name, on in (("a1", "n0"), ("c1", "n2")))
    first, second = job("first", 4, tenant="b"), job("second", 6, tenant="a", demand=replace(need(6), gpus=0))
    nodes = ClusterView(nodes=(node("n0", 6), replace(node("n1", 0), cpu_units=8 * CPU_UNITS), node("n2", 6)))
    at = moment(first, second, running=(old, other), cluster=nodes, policy=replace(PREEMPTIVE, levels=()))
    plan = at.plan()
    assert [start.job_id for start in plan.starts] == ["second"]
    assert [order.job_id for order in plan.preempts] == ["a1"]
    assert not applied(at, plan).plan().preempts


def test_a_job_for_which_one_leaves_may_start_at_once_where_that_gives_back_what_is_promised_to_another():
    first = job("first", 6, LONG_AGO, demand=replace(need(6), max_workers_per_node=3))
    second = job("second", 4, tenant="c")
    old, other = run("old", ("n1", 6), tenant="b", ran=FULL_DAY, saved_s=NOW), run("other", ("n0", 2), ("n1", 2), ran=FULL_DAY)
    at = moment(first, second, running=(old, other), cluster=cluster(8, 8), policy=replace(PREEMPTIVE, gain_factor=0.0))
    plan = at.plan()
    assert {order.job_id: order.for_job for order in plan.preempts} == {"old": "first", "other": "second"}
    assert [start.job_id for start in plan.starts] == ["second"] and not list(victims_make_room(at, plan))
    assert [start.job_id for start in after_leaving(applied(at, plan)).plan().starts] == ["first"]


def test_a_job_that_starts_with_fewer_workers_leaves_more_to_deserve_for_a_tenant_that_waits_in_the_same_plan():
    run_before = {"ran_s": HOUR / 6, "waited_s": 20.0 * HOUR}
    first, second = job("first", 3, LONG_AGO, tenant="c", **run_before), job("second", 8, 30.0 * HOUR, tenant="b", smaller=(2,))
    nodes = ClusterView(nodes=(replace(node("n0", 8), cpu_units=16 * CPU_UNITS),))
    wide = replace(run("wide", ("n0", 13), ran=600.0, saved_s=NOW), job=job("wide", 13, 600.0, demand=replace(need(13), gpus=0)))
    at = moment(first, second, running=(wide,), cluster=nodes, policy=replace(PREEMPTIVE, min_run_s=600.0))
    plan = at.plan()
    assert [start.placement for start in plan.starts] == [(("n0", 2),)]
    assert not applied(at, plan).plan().preempts


def test_a_job_that_is_promised_a_place_and_whose_tenant_is_above_its_share_takes_no_other_from_one_that_comes_first():
    """It starts where it is promised to, once the other has left: elsewhere not before those whose tenants are within their shares, though
    its own tenant has used less."""
    ends = run("ends", ("n1", 4), ran=HOUR - 600, tenant="c")
    runs = (
        run("large", ("n0", 7), tenant="b"), run("goes", ("n0", 1), leaving=True, tenant="d"), run("more", ("n2", 8), tenant="b"),
        run("other", ("n2", 8), tenant="c"), replace(ends, job=replace(ends.job, limit_s=1.0 * HOUR)),
    )  # fmt: skip
    gang, promised = job("gang", 8, priority=1, tenant="a"), job("promised", 1, priority=1, tenant="b")
    calm = replace(PREEMPTIVE, min_run_s=20.0 * HOUR)
    at = moment(gang, replace(promised, cleared=(("n0", 1),)), running=runs, cluster=cluster(8, 8, 16), policy=calm)
    plan = replace(at, usage=Usage(charged={"a": 1e6}, charged_at_s=NOW)).plan()
    assert not plan.starts
    kept = {kept.job_id: (kept.start_s, kept.placement) for kept in plan.reservations}
    assert kept["gang"] == (NOW + 600, (("n1", 8),)) and kept["promised"][1] == (("n0", 1),)
