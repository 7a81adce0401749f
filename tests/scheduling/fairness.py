"""Who waits while who starts: properties of one plan, beside what tenants deserve and who comes before whom."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator
from dataclasses import replace

from scheduling.oracle import evictable, feasible, fits_on, held, possible, rooms
from scheduling.strategies import Moment

from orchestrator.control.scheduler.model import Job, Plan, Policy, Tenant

Holder = tuple[Job, int]
"""(job, its number of workers)."""


def work_conserving(moment: Moment, plan: Plan) -> Iterator[str]:
    """No job waits that could start on what is left free by the runs, by what starts, and by all nodes on which something is reserved: for
    a gang that is next (`Plan.reservations`) or for a run that grows. Among those that may start: within their quota, with their
    whole gang, not on nodes that they are kept from. First in, first out never overtakes: of it this is said of the first only."""
    blocked = reserved_nodes(plan)
    growing = any(run.growing for run in moment.running) or bool(plan.resizes)
    jobs = {job.id: job for job in moment.queue}
    head = next((name for name in plan.order if possible(moment, jobs[name])), "")
    for job in may_start(moment, plan):
        if moment.policy.mode == "fifo" and job.id != head:
            return
        if not growing and fits_on(moment, job, plan.starts, but=blocked):
            yield f"{job.id} waits ({plan.reasons.get(job.id)}), and fits {rooms(moment.usable, held(moment, plan.starts))}"


def order_is_kept(moment: Moment, plan: Plan) -> Iterator[str]:
    """No job starts on a place that one which comes before it, and may start, could have had: its own and what is free then, on
    nodes where nothing is reserved. First in, first out it does not start at all before such a one."""
    blocked, jobs = reserved_nodes(plan), {job.id: job for job in moment.queue}
    waiting = list(may_start(moment, plan))
    for start in plan.starts:
        others = [other for other in plan.starts if other is not start]
        for job in waiting:
            could = moment.policy.mode == "fifo" or fits_on(moment, job, others, but=blocked)
            if could and comes_before(moment, plan, job, jobs[start.job_id]):
                yield f"{start.job_id} starts on {start.placement} before {job.id}"


def no_tenant_waits_below_its_share(moment: Moment, plan: Plan) -> Iterator[str]:
    """Where the policy preempts: no job waits with which its tenant would hold no more than its share, if it fits where runs have left that
    may be preempted now, of tenants that hold more than theirs and not of a higher priority. What is reserved for others is left to them.
    Said of the plan that asks for no gain: else the job waits as well where less would be gained than lost."""
    if moment.policy.mode != "preemptive":
        return
    greedy = replace(moment, policy=replace(moment.policy, gain_factor=0.0))
    plan = greedy.plan()
    served = {order.for_job for order in (*plan.preempts, *plan.resizes)} | {kept.job_id for kept in plan.reservations}
    told = {order.job_id for order in (*plan.preempts, *plan.resizes)} | {
        run.job.id for run in moment.running if run.leaving or run.growing
    }
    stay = [(run.job, run.workers) for run in moment.running if run.job.id not in told]
    deserved, blocked = shares(moment), reserved_nodes(plan)
    over = {tenant for tenant in deserved if width_of(stay, tenant) > deserved[tenant] + 1e-6}
    for job in may_start(moment, plan):
        promised = sum(other.demand.width for other in moment.queue if other.id in served and other.tenant == job.tenant)
        holds = width_of(holders_after(moment, plan), job.tenant) + promised + job.demand.width
        if job.id in served or holds > deserved[job.tenant] + 1e-6:
            continue
        others = [run for run in evictable(moment) if run.job.tenant in over - {job.tenant} and run.job.priority <= job.priority]
        gone = {run.job.id for run in others if run.job.id not in told and run.job.waited_s < moment.policy.max_total_wait_s}
        if gone and fits_on(moment, job, plan.starts, gone, blocked):
            yield f"{job.id} waits, below the share {deserved[job.tenant]} of {job.tenant!r}; {sorted(gone)} are of tenants above theirs"


def comes_before(moment: Moment, plan: Plan, one: Job, other: Job) -> bool:
    """By more than expected run times: starved, then by priority, then a tenant that would hold no more than its share with it, all that
    starts and all that is cleared for its jobs, and used less for its weight than the other, then, where the policy preempts and the job is
    within the share of its tenant, by level of attained service. A place for which others were told to leave is kept for its job, whoever
    has come before it since."""
    policy = moment.policy
    if one.cleared or other.cleared:
        return False
    if policy.mode == "fifo":
        return (one.queued_s, one.id) < (other.queued_s, other.id)
    if starved(moment, one) or starved(moment, other):
        since, other_since = ((job.ran_s > 0, job.queued_s, job.id) for job in (one, other))
        return starved(moment, one) and (not starved(moment, other) or since < other_since)
    if one.priority != other.priority:
        return one.priority > other.priority
    if one.tenant != other.tenant:
        return below_share(moment, plan, one) and used(moment, one.tenant) < used(moment, other.tenant)
    alone = {job.tenant for job in moment.queue} | {run.job.tenant for run in moment.running} == {one.tenant}
    within = alone or below_share(moment, plan, one)
    return within and policy.mode == "preemptive" and level(policy, one.attained) < level(policy, other.attained)


def starved(moment: Moment, job: Job) -> bool:
    """It has waited too long: in this wait, a gang on GPUs that is larger than any node less long; or in all and longer than it ran."""
    policy, waited_s = moment.policy, moment.now - job.queued_s
    is_wide = job.demand.gpus and job.demand.width > max((node.gpus for node in moment.usable), default=0)
    bound_s = min(policy.max_wait_s, policy.max_gang_wait_s) if is_wide else policy.max_wait_s
    return waited_s >= bound_s or job.waited_s + waited_s >= max(policy.max_total_wait_s, job.ran_s)


def level(policy: Policy, attained: float) -> int:
    return sum(attained >= bound for bound in policy.levels)


def below_share(moment: Moment, plan: Plan, job: Job) -> bool:
    """With it, with all that starts, and with the places that others leave for jobs of its tenant."""
    jobs = {one.id: one for one in moment.queue}
    cleared = [(jobs[kept.job_id], sum(count for _, count in kept.placement)) for kept in plan.reservations if kept.cleared]
    return width_of(holders_after(moment, plan) + cleared, job.tenant) + job.demand.width < shares(moment)[job.tenant] + 1e-6


def above_share(moment: Moment, tenant: str, more: int = 0, gone: Collection[str] = ()) -> float:
    """Width that a tenant holds above its share, with so much more; what leaves is not counted, nor are the runs `gone`."""
    holders = [(run.job, run.workers) for run in moment.running if not run.leaving and run.job.id not in gone]
    return width_of(holders, tenant) + more - shares(moment)[tenant]


def shares(moment: Moment) -> dict[str, float]:
    """Weighted max-min fairness: each tenant's width in GPUs of all there are, no more than it wants or its quota allows. It rises for all
    alike, by weight, until everybody is content or nothing is left; here by bisection of the level."""
    wanted: dict[str, float] = {}
    for job, size in [(run.job, run.workers) for run in moment.running] + [(job, job.demand.num_workers) for job in moment.queue]:
        wanted[job.tenant] = wanted.get(job.tenant, 0.0) + size * (job.demand.gpus or 1)
    about = {name: moment.policy.tenants.get(name, Tenant()) for name in wanted}
    most = {name: width if about[name].quota is None else min(width, about[name].quota or 0) for name, width in wanted.items()}
    total, low, high = sum(node.gpus for node in moment.usable), 0.0, 1e9
    for _ in range(100):
        middle = (low + high) / 2
        enough = sum(min(most[name], middle * about[name].weight) for name in most) <= total
        low, high = (middle, high) if enough else (low, middle)
    return {name: min(most[name], low * about[name].weight) for name in most}


def used(moment: Moment, tenant: str) -> float:
    """Service for its weight, decayed until now; what it holds has been charged on since."""
    half_s, at_s = moment.policy.usage_half_life_s, moment.usage.charged_at_s

    def kept(since_s: float) -> float:
        return 0.5 ** ((moment.now - since_s) / half_s)

    runs = [run for run in moment.running if run.job.tenant == tenant]
    since = sum(run.width * half_s / math.log(2) * (1 - kept(max(at_s, run.started_s))) for run in runs)
    return (moment.usage.charged.get(tenant, 0.0) * kept(at_s) + since) / moment.policy.tenants.get(tenant, Tenant()).weight


def reserved_nodes(plan: Plan) -> set[str]:
    return {node_id for reservation in plan.reservations for node_id, _ in reservation.placement}


def width_of(holders: list[Holder], tenant: str) -> int:
    return sum(size * (job.demand.gpus or 1) for job, size in holders if job.tenant == tenant)


def holders_after(moment: Moment, plan: Plan) -> list[Holder]:
    """The runs, what leaves included, and what starts."""
    jobs = {job.id: job for job in moment.queue}
    running = [(run.job, run.workers) for run in moment.running]
    return running + [(jobs[start.job_id], sum(count for _, count in start.placement)) for start in plan.starts]


def may_start(moment: Moment, plan: Plan) -> Iterator[Job]:
    """The jobs that wait in their order, but those that quota, or missing nodes, keep waiting. For what is reserved quota is kept too."""
    jobs, started = {job.id: job for job in moment.queue}, {start.job_id for start in plan.starts}
    holders = holders_after(moment, plan)
    holders += [(jobs[kept.job_id], jobs[kept.job_id].demand.num_workers) for kept in plan.reservations]
    for name in plan.order:
        job = jobs[name]
        tenant = moment.policy.tenants.get(job.tenant, Tenant())
        within = tenant.quota is None or width_of(holders, job.tenant) + job.demand.width <= tenant.quota
        of_user = sum(other.tenant == job.tenant and other.user == job.user for other, _ in holders)
        if name not in started and within and (tenant.jobs_per_user is None or of_user < tenant.jobs_per_user) and feasible(moment, job):
            yield job
