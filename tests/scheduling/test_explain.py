"""What is told of a job that waits, beside what planning with it changed says."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from random import Random

import pytest
from hypothesis import HealthCheck, Phase, assume, given, settings
from hypothesis import strategies as st
from scheduling.fairness import may_start, reserved_nodes
from scheduling.oracle import fits, fits_on, held, lost, open_nodes, possible, rooms, stays_together
from scheduling.strategies import Moment, moment, moments

from orchestrator.control.scheduler import explain
from orchestrator.control.scheduler.explain import Explanation
from orchestrator.control.scheduler.model import Job, Plan
from orchestrator.errors import StateError

QUICK = settings(max_examples=30, deadline=None, derandomize=True, phases=[Phase.generate], suppress_health_check=list(HealthCheck))
Question = tuple[Moment, Job]


def question(rng: Random) -> Question | None:
    at = moment(rng)
    return (at, rng.choice(at.queue)) if at.queue else None


questions = st.randoms(use_true_random=False).map(question).filter(bool)


def asked_of(at: Moment, job: Job) -> Explanation:
    return explain(job.id, at.cluster, at.queue, at.running, at.usage, at.now, at.policy)


def planned_with(at: Moment, job: Job) -> Plan:
    """As if the job of that name were this one."""
    return replace(at, queue=(*(other for other in at.queue if other.id != job.id), job)).plan()


@QUICK
@given(questions)
def test_position_reason_and_reservation_are_those_of_the_plan(asked: Question):
    at, job = asked
    plan, told = at.plan(), asked_of(at, job)
    if job.id in plan.order:
        assert (told.position, told.reason) == (plan.order.index(job.id) + 1, plan.reasons[job.id])
    else:
        assert (told.position, told.start_s) == (0, at.now)
    kept = {reservation.job_id: reservation.start_s for reservation in plan.reservations}
    assert told.reserved == (job.id in kept)
    if told.reserved:
        assert told.start_s == kept[job.id]


@QUICK
@given(questions)
def test_a_start_is_predicted_where_the_job_can_run_and_never_in_the_past(asked: Question):
    """But for one that a quota keeps waiting: nobody knows whose job of its tenant will end first."""
    at, job = asked
    told, plan = asked_of(at, job), at.plan()
    assert told.start_s is None or told.start_s >= at.now
    if job.id in {other.id for other in may_start(at, plan)}:
        assert told.start_s is not None
    elif not possible(at, job):
        assert told.start_s is None


@QUICK
@given(questions)
def test_without_its_holders_the_first_job_fits_and_with_any_of_them_it_does_not(asked: Question):
    at, job = asked
    plan = at.plan()
    assume(plan.order[:1] == (job.id,) and not plan.starts)
    nodes, gone = open_nodes(at, job.demand), {run.job.id for run in at.running if run.leaving}
    holders, runs = asked_of(at, job).holders, {run.job.id: run for run in at.running}

    def fits_without(names: set[str]) -> bool:
        return fits(rooms(nodes, held(at, (), names | gone)), job.demand, job.demand.num_workers)

    assume(not fits_without(set()))
    assert bool(holders) == fits_without(set(runs))
    if holders:
        assert fits_without(set(holders)) and not any(fits_without(set(holders) - {name}) for name in holders)
        plenty = all(node.cpu_units >= 160_000 for node in nodes) and all(run.job.demand.gpus for run in at.running)
        if plenty and stays_together(job.demand, job.demand.num_workers) and any(node.gpus >= job.demand.width for node in nodes):
            least = min(sum(lost(runs[name], at.now) for name in names) for names in _subsets(list(runs)) if fits_without(names))
            assert sum(lost(runs[name], at.now) for name in holders) <= least * 1.000001


def _subsets(names: list[str]) -> list[set[str]]:
    return [{name for bit, name in enumerate(names) if number >> bit & 1} for number in range(2 ** len(names))]


@QUICK
@given(questions)
def test_at_the_priority_that_is_told_and_at_none_below_it_would_be_served(asked: Question):
    at, job = asked
    told = asked_of(at, job)
    assume(told.position)
    others = [other.priority for other in at.queue] + [run.job.priority for run in at.running]

    def is_served(priority: int) -> bool:
        plan = planned_with(at, replace(job, priority=priority))
        started = job.id in {start.job_id for start in plan.starts}
        return started or job.id in {order.for_job for order in (*plan.preempts, *plan.resizes)}

    enough = next((priority for priority in range(job.priority + 1, max(others) + 2) if is_served(priority)), None)
    assert told.at_priority == (None if at.policy.mode == "fifo" else enough)


@QUICK
@given(questions)
def test_with_the_number_of_workers_that_is_told_it_would_start(asked: Question):
    at, job = asked
    told = asked_of(at, job)
    if told.with_workers is not None:
        size = told.with_workers
        assert size < job.demand.num_workers and (size in job.smaller if job.smaller else size % min(job.demand.group, size) == 0)
        fewer = replace(job, demand=replace(job.demand, num_workers=size, group=min(job.demand.group, size)), smaller=(), larger=())
        assert job.id in {start.job_id for start in planned_with(at, fewer).starts}


@QUICK
@given(questions)
def test_a_larger_number_of_workers_would_not_fit_on_what_the_plan_leaves_to_it(asked: Question):
    """But for nodes on which something is reserved; where no quota is and nobody overtakes nobody."""
    at = replace(asked[0], policy=replace(asked[0].policy, tenants={}, mode=asked[0].policy.mode.replace("fifo", "batch")))
    job, plan = asked[1], at.plan()
    told = asked_of(at, job)
    assume(told.position)
    for size in range((told.with_workers or 0) + 1, job.demand.num_workers):
        if size in job.smaller or (not job.smaller and size % job.demand.group == 0):
            assert not fits_on(at, job, plan.starts, but=reserved_nodes(plan), workers=size)


@QUICK
@given(moments())
def test_first_in_first_out_nobody_is_told_an_earlier_start_than_those_ahead(at: Moment):
    at = replace(at, policy=replace(at.policy, mode="fifo"))
    jobs = {job.id: job for job in at.queue}
    waiting = [told for told in (asked_of(at, jobs[name]) for name in at.plan().order) if told.start_s is not None]
    assert all(one.start_s <= other.start_s for one, other in pairwise(waiting))


def test_a_job_that_does_not_wait_is_refused():
    at = moment(Random(0))
    with pytest.raises(StateError, match="does not wait"):
        explain("nobody", at.cluster, at.queue, at.running, at.usage, at.now, at.policy)
