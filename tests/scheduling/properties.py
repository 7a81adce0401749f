"""What must hold of every plan, whatever the moment. Each property is a function of a moment and its plan, and yields what is amiss.

Properties of what happens over time are in `lives`.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from random import Random

from scheduling.fairness import no_tenant_waits_below_its_share, order_is_kept, reserved_nodes, width_of, work_conserving
from scheduling.forms import after_leaving, applied, restored, shuffled, stored, told
from scheduling.oracle import Rooms, fits_on, fits_one_empty, held, is_legal, most, open_nodes, protected_until, rooms, with_labels
from scheduling.strategies import Moment

from orchestrator.control.scheduler.model import Demand, Job, Plan, Standing
from orchestrator.control.scheduler.planner import Planner

Findings = Iterator[str]
Property = Callable[[Moment, Plan], Findings]


def no_gpu_in_two_jobs(moment: Moment, plan: Plan) -> Findings:
    """On no node do the runs, those that leave included, and what starts hold more than it has; what grows has both places, the old and
    the new, until it has moved. Nothing starts on a node that is dead, draining or unknown, and no job starts twice. A node that was
    overfull before may stay so, but nothing starts there."""
    usable = {node.id for node in moment.usable}
    before = rooms(moment.usable, held(moment))
    after = rooms(moment.usable, held(moment, plan.starts) + _grown(moment, plan))
    for node_id, left in after.items():
        if left != before[node_id] and min(left.cpu_units, left.gpus) < 0:
            yield f"{node_id} is overfull: {left} would be free"
    for start in plan.starts:
        if gone := {node_id for node_id, _ in start.placement} - usable:
            yield f"{start.job_id} starts on {gone}"
    twice = [name for name, count in Counter(start.job_id for start in plan.starts).items() if count > 1]
    yield from (f"{name} starts twice" for name in twice)


def _grown(moment: Moment, plan: Plan) -> list[tuple[Demand, tuple[tuple[str, int], ...]]]:
    """What larger places take beside what the runs hold now."""
    runs = {run.job.id: run for run in moment.running}
    found = []
    for order in plan.resizes:
        had = dict(runs[order.job_id].placement)
        more = tuple((node_id, max(0, count - had.get(node_id, 0))) for node_id, count in order.placement)
        found.append((runs[order.job_id].job.demand, more))
    return found


def orders_are_possible(moment: Moment, plan: Plan) -> Findings:
    """Only what waits starts; only a run that has not been told to leave or to grow is told to, and only one thing."""
    waiting, free_to_go = {job.id for job in moment.queue}, {run.job.id for run in moment.running if not run.leaving and not run.growing}
    yield from (f"{start.job_id} starts, and does not wait" for start in plan.starts if start.job_id not in waiting)
    told = Counter([order.job_id for order in plan.preempts] + [order.job_id for order in plan.resizes])
    yield from (f"{name} is told to leave, and cannot" for name in told if name not in free_to_go)
    yield from (f"{name} is told {count} things" for name, count in told.items() if count > 1)
    yield from (
        f"{order.job_id} makes room for {order.for_job}, which does not wait" for order in plan.preempts if order.for_job not in waiting
    )


def all_or_nothing(moment: Moment, plan: Plan) -> Findings:
    """A gang starts with all its workers, or with another number that is legal for it: then for a smaller one its wait is over."""
    jobs = {job.id: job for job in moment.queue}
    for start in plan.starts:
        job, size = jobs[start.job_id], sum(count for _, count in start.placement)
        if size not in legal(job):
            yield f"{job.id} starts with {size} workers; {legal(job)} are legal"
        if len(dict(start.placement)) != len(start.placement) or any(count <= 0 for _, count in start.placement):
            yield f"{job.id} starts on {start.placement}: each node once, with a worker at least"


def sizes_are_legal(moment: Moment, plan: Plan) -> Findings:
    """A run is resized to another legal number, and at most once in the interval of the policy; first in, first out it grows back
    to its whole gang as soon as nodes are there. So is every reservation legal."""
    runs, jobs = {run.job.id: run for run in moment.running}, {job.id: job for job in moment.queue}
    for order in plan.resizes:
        name, size, run = order.job_id, order.workers, runs[order.job_id]
        if sum(count for _, count in order.placement) != size:
            yield f"{name} is to have {size} workers on {order.placement}"
        if size not in legal(run.job) or size == run.workers:
            yield f"{name} goes from {run.workers} to {size} workers; {legal(run.job)} are legal"
        soon = run.job.resized_s is not None and moment.now < run.job.resized_s + moment.policy.resize_interval_s
        if soon and moment.policy.mode != "fifo":
            yield f"{name} is resized again after {moment.now - run.job.resized_s} s"
    for reservation in plan.reservations:
        size = sum(count for _, count in reservation.placement)
        if reservation.job_id in jobs and reservation.placement and size not in legal(jobs[reservation.job_id]):
            yield f"{reservation.job_id} is reserved {size} workers"


def topology_is_kept(moment: Moment, plan: Plan) -> Findings:
    """`oracle.is_legal`, on what was free when it was placed, after the starts before it: no group is cut, and a gang on GPUs is on one
    node where one is large enough, else on idle nodes and one more. No node has more workers than the job allows on one. And where a node
    of good standing has room for all of it at the end, it is on one."""
    jobs, reserved = {job.id: job for job in moment.queue}, {node_id for _, node_id in ever_reserved(moment)}
    for at, start in enumerate(plan.starts):
        demand = replace(jobs[start.job_id].demand, num_workers=sum(count for _, count in start.placement))
        nodes = open_nodes(moment, demand)
        on_one = fits_one_empty(rooms(nodes, ()), demand, demand.num_workers)
        if not is_legal(start.placement, rooms(nodes, held(moment, plan.starts[:at])), demand, on_one):
            yield f"{start.job_id} on {start.placement} of {rooms(nodes, held(moment, plan.starts[:at]))}: groups of {demand.group}"
        if demand.max_workers_per_node and any(count > demand.max_workers_per_node for _, count in start.placement):
            yield f"{start.job_id} on {start.placement}: at most {demand.max_workers_per_node} on a node"
        good = [node for node in with_labels(moment.usable, demand) if node.standing is Standing.GOOD and node.id not in reserved]
        others = rooms(good, held(moment, [other for other in plan.starts if other is not start]))
        alone = [node_id for node_id, room in others.items() if most(room, demand) >= demand.num_workers]
        if len(start.placement) > 1 and alone:
            yield f"{start.job_id} is spread over {start.placement}; it fits {alone}"


def labels_are_kept(moment: Moment, plan: Plan) -> Findings:
    """What starts, or is given more workers, has only nodes with all the labels that it asks for."""
    demands = {job.id: job.demand for job in (*moment.queue, *(run.job for run in moment.running))}
    had = {run.job.id: {node_id for node_id, _ in run.placement} for run in moment.running}
    for order in (*plan.starts, *plan.resizes):
        allowed = {node.id for node in with_labels(moment.usable, demands[order.job_id])} | had.get(order.job_id, set())
        if others := {node_id for node_id, _ in order.placement} - allowed:
            yield f"{order.job_id} has {others}, which lack some of {demands[order.job_id].labels}"


def ever_reserved(moment: Moment) -> set[tuple[str, str]]:
    """(job, node) of each place that was kept while the plan was made: where it is made again, one that was in the way of others may go
    elsewhere in the end."""
    planner = Planner(moment.cluster, moment.queue, moment.running, moment.usage, moment.now, moment.policy)
    found: set[tuple[str, str]] = set()
    while True:
        decided = planner.decide()
        found |= {(kept.job_id, node_id) for kept in decided.reservations for node_id, _ in kept.placement}
        if not planner.goes_on:
            return found
        planner = planner.after(decided)


def deterministic(moment: Moment, plan: Plan) -> Findings:
    """The same plan from the same arguments, and from the same sets in another order. History has an order of its own."""
    if told(moment.plan()) != told(plan):
        yield "the second plan differs"
    for seed in range(2):
        other = told(shuffled(moment, Random(seed)).plan())
        if other != told(plan):
            yield f"in another order: {other} instead of {told(plan)}"


def equal_from_what_is_stored(moment: Moment, plan: Plan) -> Findings:
    """All memory is in the arguments, and all of them survive JSON."""
    other = told(restored(json.loads(json.dumps(stored(moment))), moment.planner).plan())
    if other != told(plan):
        yield f"after a restart: {other} instead of {told(plan)}"


def quotas_are_kept(moment: Moment, plan: Plan) -> Findings:
    """After the starts and resizes no tenant that has a quota holds more, nor has a user more jobs than allowed, than before or than the
    limit. What leaves is held until it has left; what grows holds the larger place from the order on."""
    jobs, grown = {job.id: job for job in moment.queue}, {order.job_id: order.workers for order in plan.resizes}
    before = [(run.job, run.workers) for run in moment.running]
    after = [(job, max(size, grown.get(job.id, 0))) for job, size in before]
    after += [(jobs[start.job_id], sum(count for _, count in start.placement)) for start in plan.starts]
    for name, tenant in moment.policy.tenants.items():
        used, had = (width_of(side, name) for side in (after, before))
        if tenant.quota is not None and used > max(tenant.quota, had):
            yield f"tenant {name!r} holds {used}, quota {tenant.quota}"
        for user in {job.user for job, _ in after}:
            has, before_it = (sum(job.tenant == name and job.user == user for job, _ in side) for side in (after, before))
            if tenant.jobs_per_user is not None and has > max(tenant.jobs_per_user, before_it):
                yield f"user {user!r} of {name!r} runs {has} jobs, {tenant.jobs_per_user} allowed"


def each_that_waits_knows_why(moment: Moment, plan: Plan) -> Findings:
    """Each job that does not start has a reason and a position, each once; what starts has none. A reservation is of a job that waits, not
    in the past, and of a place that its gang fits on."""
    started = {start.job_id for start in plan.starts}
    waits = {job.id: job for job in moment.queue if job.id not in started}
    yield from (f"{name} waits without a reason" for name in waits if not plan.reasons.get(name))
    if set(plan.reasons) != set(waits):
        yield f"reasons of {sorted(plan.reasons)}; {sorted(waits)} wait"
    if sorted(plan.order) != sorted(waits):
        yield f"positions of {plan.order}; {sorted(waits)} wait"
    for reservation in plan.reservations:
        if reservation.job_id not in waits or reservation.start_s < moment.now:
            yield f"reservation {reservation} at {moment.now}; {sorted(waits)} wait"
            continue
        demand = waits[reservation.job_id].demand
        if reservation.placement and not _fits_exactly(rooms(with_labels(moment.usable, demand), ()), demand, reservation.placement):
            yield f"{reservation.job_id} cannot run on {reservation.placement}"


def victims_may_be_preempted(moment: Moment, plan: Plan) -> Findings:
    """Only where the policy preempts; only what goes on from its checkpoints; never within the minimum run time, which doubles with every
    preemption of the job; each with a receipt of what it costs."""
    runs = {run.job.id: run for run in moment.running}
    if plan.preempts and moment.policy.mode != "preemptive":
        yield f"{moment.policy.mode} preempts {plan.preempts}"
    for order in plan.preempts:
        run = runs[order.job_id]
        if not run.job.preemptible:
            yield f"{order.job_id} saves no checkpoints"
        if moment.now < protected_until(run, moment.policy):
            yield f"{order.job_id} has run for {moment.now - run.started_s} s after {run.job.preemptions} preemptions"
        if order.cost < 0:
            yield f"{order} costs nothing"


def victims_are_few(moment: Moment, plan: Plan) -> Findings:
    """Of the victims of one job none could stay: with any of them left where it is, the job does not fit into what is free, leaving
    runs' places included, on the nodes that are not reserved for another. The victims of others stay."""
    jobs = {job.id: job for job in moment.queue}
    leaving, reserved = {run.job.id for run in moment.running if run.leaving}, ever_reserved(moment)
    for name in sorted({order.for_job for order in plan.preempts}):
        victims = [order.job_id for order in plan.preempts if order.for_job == name]
        job, others = jobs[name], {node_id for job_id, node_id in reserved if job_id != name}
        gone = {*leaving, *(order.job_id for order in plan.preempts)}
        size = sum(count for kept in plan.reservations if kept.job_id == name for _, count in kept.placement)
        shrunk = any(order.for_job for order in plan.resizes)
        if not shrunk and not fits_on(moment, job, plan.starts, gone, workers=size):
            yield f"{name} does not fit without {gone}: {rooms(moment.usable, held(moment, plan.starts, gone))}"
        for kept in victims:
            if fits_on(moment, job, plan.starts, {*victims, *leaving} - {kept}, others, size):
                yield f"{kept} is evicted for {name}, which fits without"


def victims_make_room(moment: Moment, plan: Plan) -> Findings:
    """No eviction is in vain: once all who were told to leave have left, at the same time, the first job for which one was starts, or one
    that comes before it and was kept waiting by a quota that is free now. Said of moments at which nobody was leaving yet. A job for which
    somebody leaves may start at once, where what it takes becomes free again for one that is promised it."""
    wanting = {order.for_job for order in plan.preempts}
    if wanting and not any(run.leaving for run in moment.running):
        waiting = wanting - {start.job_id for start in plan.starts}
        if not waiting:
            yield f"{wanting} start at once, though others were told to leave for them"
            return
        second = after_leaving(applied(moment, plan)).plan()
        first = min(waiting, key=plan.order.index)
        before = set(plan.order[: plan.order.index(first) + 1])
        if not before & {start.job_id for start in second.starts}:
            yield f"{first} does not start: {told(second)}"


def nothing_is_left_to_do(moment: Moment, plan: Plan) -> Findings:
    """Once a plan is applied, the next at the same time has no orders, but for starts that `may_follow`. A job that has shrunk has left
    room for anybody: then there is an end to it after as many plans as there are runs."""
    after, at_most = moment, len(moment.running) + 2
    for _ in range(at_most):
        after, before = applied(after, plan), plan
        plan = after.plan()
        if not has_orders(plan):
            return
        if not may_follow(moment, before, plan) and not any(order.for_job for order in before.resizes):
            yield f"then {told(plan)}"
            return
    yield f"after {at_most} plans {told(plan)}"


def may_follow(moment: Moment, before: Plan, plan: Plan) -> bool:
    """The plan only starts what could not start in the one before it at the same time: jobs that are promised places where others leave,
    if all that leaves is room enough for those before them and they fit already; or, where the policy preempts, jobs on nodes of which some
    are reserved, beside others that the plan before started there: it took these to stay until their estimated end, this one until they may
    be preempted."""
    started = {start.job_id for start in plan.starts}
    places = {node_id for start in plan.starts for node_id, _ in start.placement}
    promised = bool(before.preempts) and started <= {kept.job_id for kept in before.reservations}
    beside = moment.policy.mode == "preemptive" and bool(before.starts) and not places.isdisjoint(reserved_nodes(before))
    return (promised or beside) and not plan.preempts and not plan.resizes


def settled(moment: Moment, plan: Plan) -> tuple[Moment, Plan]:
    """The moment and the last plan after somebody left or shrank, or something may follow, as long as there are orders."""
    after = applied(moment, plan)
    for _ in range(len(moment.running) + 2):
        following = after.plan()
        if not has_orders(following) and not plan.preempts and not plan.resizes:
            return after, plan
        if not plan.preempts and not plan.resizes and not may_follow(moment, plan, following):
            return after, plan
        plan = following
        after = applied(after, plan)
    return after, plan


def has_orders(plan: Plan) -> bool:
    return bool(plan.starts or plan.preempts or plan.resizes)


def next_change_is_right(moment: Moment, plan: Plan) -> Findings:
    """Between now and `next_change_at` nothing is decided: planned at any time between, with the plan applied, nothing is to be done. Where
    it is None that is so for ever. It is never now. Somebody who leaves or shrinks is an event, after which there is another plan at once:
    it is said of that one. It is said to the millisecond. While somebody leaves it is said of the grace that he has."""
    after, plan = settled(moment, plan)
    at = plan.next_change_at
    if at is not None and at <= moment.now:
        yield f"next change at {at}, it is {moment.now}"
        return
    if any(run.leaving for run in after.running):
        at = min(moment.now + moment.policy.grace_s, at or math.inf)
    spans = (0.001, 0.3, 0.7, 0.999) if at is not None else (1, 600, 3600, 40_000, 4_000_000)
    for part in spans:
        between = moment.now + part * ((at - moment.now) if at is not None else 1)
        later = replace(after, now=between).plan()
        if has_orders(later) and between > moment.now + 0.001:
            yield f"at {between}, before {at}: {told(later)}"
            return


PROPERTIES: tuple[Property, ...] = (
    no_gpu_in_two_jobs, orders_are_possible, all_or_nothing, sizes_are_legal, topology_is_kept, labels_are_kept, deterministic,
    equal_from_what_is_stored, quotas_are_kept, each_that_waits_knows_why, work_conserving, order_is_kept, no_tenant_waits_below_its_share,
    victims_may_be_preempted, victims_are_few, victims_make_room, nothing_is_left_to_do, next_change_is_right,
)  # fmt: skip


def legal(job: Job) -> tuple[int, ...]:
    return (*job.smaller, job.demand.num_workers, *job.larger)


def _fits_exactly(free: Rooms, demand: Demand, placement: tuple[tuple[str, int], ...]) -> bool:
    return all(node_id in free and most(free[node_id], demand) >= count for node_id, count in placement)
