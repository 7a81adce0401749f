"""What must hold over time: a small cluster from the first job to the last, planned by the scheduler and carried out by the `Machine`.

A story says what happens beside the scheduler. It is lived with plans only where something happens or `Plan.next_change_at` says so,
or at every round as well; with or without a controller that forgets everything between two plans.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from itertools import zip_longest
from random import Random

from hypothesis import strategies as st
from scheduling.fairness import above_share, comes_before, level, starved
from scheduling.forms import restored, stored
from scheduling.machine import Event, Impossible, Machine
from scheduling.oracle import feasible, fits, rooms, with_labels
from scheduling.properties import PROPERTIES
from scheduling.strategies import HOUR, Moment, calm, job, policy

from orchestrator.control.scheduler.model import Job, Node, Plan, Policy

RETRY_S = 10.0
"""Until a start that failed is tried again."""
MOST_PLANS = 3000
CLOSE_S = 0.1


@dataclass(frozen=True, kw_only=True)
class Story:
    nodes: tuple[Node, ...]
    policy: Policy
    jobs: tuple[tuple[float, Job, float], ...]
    """(when it is submitted, job, seconds that it needs)."""
    losses: tuple[tuple[float, str, float], ...] = ()
    """(when, node, when it is back)."""
    fails: frozenset[int] = frozenset()
    """Of all starts, counted from 0, those that fail."""
    restart_s: float = 0.0
    leave_s: float = 0.0
    exact: bool = False
    """Every job has a limit, at which it ends, and nothing else is known of its run time."""


@dataclass
class Life:
    machine: Machine
    log: list[Event] = field(default_factory=list)
    found: list[str] = field(default_factory=list)
    plans: list[tuple[Moment, Plan]] = field(default_factory=list)

    def goes_as(self, other: Life) -> bool:
        """The same happens in both, within some of the milliseconds to which the next change is told."""
        pairs = zip_longest(self.log, other.log)
        return all(one and two and one == replace(two, at_s=one.at_s) and abs(one.at_s - two.at_s) < CLOSE_S for one, two in pairs)


def story(rng: Random, mode: str | None = None, *, calmly: bool = False) -> Story:
    """`calmly`: nothing fails, every job ends when its user said, none is elastic, and all are of one tenant."""
    nodes, made = calm(rng), policy(rng, mode)
    jobs, at = [], 0.0
    for number in range(rng.randint(1, 12)):
        at += rng.choice((0, 0, 60, 600, HOUR))
        needs = float(rng.choice((60, 600, HOUR, 3 * HOUR, 12 * HOUR, 40 * HOUR)))
        one = job(rng, f"j{number}", nodes)
        if calmly:
            one = replace(one, limit_s=needs, smaller=(), larger=(), tenant="")
        jobs.append((at, one, needs))
    trouble = not calmly and rng.randrange(3) == 2
    return Story(
        nodes=nodes, policy=made, jobs=tuple(jobs),
        losses=tuple(_loss(rng, nodes) for _ in range(rng.randrange(3))) if trouble else (),
        fails=frozenset(rng.sample(range(12), 3)) if trouble else frozenset(),
        restart_s=0.0 if calmly else float(rng.choice((0, 60))), leave_s=0.0 if calmly else float(rng.choice((0, 30))),
        exact=calmly,
    )  # fmt: skip


def stories(mode: str | None = None, *, calmly: bool = False) -> st.SearchStrategy[Story]:
    return st.randoms(use_true_random=False).map(lambda rng: story(rng, mode, calmly=calmly))


def live(told: Story, *, step_s: float = math.inf, round_s: float = 0.0, forget: bool = False, check: bool = False) -> Life:
    """To the end of the last job that can end. It is planned at multiples of `round_s` only, if given, and each `step_s` though nothing has
    happened. `check`: every property of `PROPERTIES` at every plan."""
    machine = Machine(told.nodes, told.policy, 0.0, restart_s=told.restart_s, leave_s=told.leave_s, learns=not told.exact)
    life, starts, again = Life(machine), 0, 0.0
    while len(life.plans) < MOST_PLANS:
        _happen(told, machine)
        moment = machine.moment()
        if forget:
            moment = restored(json.loads(json.dumps(stored(moment))), moment.planner)
        plan = moment.plan()
        life.plans.append((moment, plan))
        if check:
            life.found += [f"{found.__name__} at {machine.now}: {said}" for found in PROPERTIES for said in found(moment, plan)]
        fails = [start.job_id for number, start in enumerate(plan.starts, starts) if number in told.fails]
        starts += len(plan.starts)
        _note_shortage(machine, plan)
        try:
            machine.apply(plan, fails)
        except Impossible as error:
            life.found.append(f"impossible at {machine.now}: {error}")
            break
        shrunk = any(order.for_job for order in plan.resizes)
        again = machine.now if shrunk else machine.now + RETRY_S if fails else math.inf
        at = min(_next(told, machine), plan.next_change_at or math.inf, again)
        if not math.isfinite(at):
            break
        at = min(at, machine.now + step_s)
        machine.advance(math.ceil(at / round_s) * round_s if round_s else at)
    else:
        life.found.append(f"not over after {MOST_PLANS} plans, at {machine.now}")
    life.log = machine.log
    return life


def _happen(told: Story, machine: Machine) -> None:
    """What the story has for now."""
    for at, node_id, back in told.losses:
        if at == machine.now:
            machine.lose(node_id)
        if back == machine.now:
            machine.repair(node_id)
    for at, one, needs in told.jobs:
        if at <= machine.now and one.id not in machine.needs:
            machine.submit(replace(one, submitted_s=at, queued_s=at), needs)


def _to_come(told: Story, now: float) -> list[float]:
    times = [at for at, _, _ in told.jobs] + [time for at, _, back in told.losses for time in (at, back)]
    return [time for time in times if time > now]


def _next(told: Story, machine: Machine) -> float:
    return min((machine.next_event_s(), *_to_come(told, machine.now)))


def _note_shortage(machine: Machine, plan: Plan) -> None:
    """As a controller does: since when nodes have been missing."""
    for name, one in machine.waiting.items():
        since = one.short_since_s if one.short_since_s is not None else machine.now
        machine.waiting[name] = replace(one, short_since_s=since if name in plan.short else None)


def _loss(rng: Random, nodes: tuple[Node, ...]) -> tuple[float, str, float]:
    at = float(rng.choice((30, 700, 5000, 20_000)))
    return at, rng.choice(nodes).id, at + rng.choice((600, HOUR))


def all_ends(told: Story, life: Life) -> Iterator[str]:
    """Every job that fits the whole cluster and that quota allows ends, and holds nothing afterwards."""
    done = {event.job_id for event in life.log if event.what == "done"}
    if life.machine.runs:
        yield f"{sorted(life.machine.runs)} still run"
    for name, one in life.machine.waiting.items():
        if name not in done and _can_run(told, one):
            yield f"{name} never ran: {life.plans[-1][1].reasons.get(name)}"


def _can_run(told: Story, one: Job) -> bool:
    tenant = told.policy.tenants.get(one.tenant)
    within = tenant is None or tenant.quota is None or one.demand.width <= tenant.quota
    return within and fits(rooms(with_labels(told.nodes, one.demand), ()), one.demand, one.demand.num_workers)


def protected_between_evictions(told: Story, life: Life) -> Iterator[str]:
    """No job is told to leave twice within the minimum run time, nor within it after a start; it doubles with every time."""
    times: dict[str, int] = {}
    since: dict[str, float] = {}
    for event in life.log:
        if event.what == "started":
            since[event.job_id] = event.at_s
        if event.what == "evicted":
            least = told.policy.min_run_s * 2 ** min(times.get(event.job_id, 0), told.policy.max_doublings)
            if event.at_s - since[event.job_id] < least:
                yield f"{event.job_id} is evicted at {event.at_s}, it started at {since[event.job_id]}; {least} s are its own"
            times[event.job_id] = times.get(event.job_id, 0) + 1


def no_eviction_is_returned(told: Story, life: Life) -> Iterator[str]:
    """Who was evicted for a job does not evict it in turn, unless the two have changed places in between: the other has fallen below it by
    its attained service, it is starved now, or the other's tenant has come to be further above its share than its own would be."""
    return returned_evictions(life.plans)


def returned_evictions(plans: Iterable[tuple[Moment, Plan]]) -> Iterator[str]:
    """`no_eviction_is_returned` of plans in the order of their times."""
    before: set[tuple[str, str]] = set()
    for moment, plan in plans:
        for order in plan.preempts:
            if (order.job_id, order.for_job) in before and not _changed_places(moment, plan, order.for_job, order.job_id):
                yield f"at {moment.now} {order.for_job} evicts {order.job_id}, for which it was evicted"
        before |= {(order.for_job, order.job_id) for order in plan.preempts}


def _changed_places(moment: Moment, plan: Plan, waiting: str, running: str) -> bool:
    """With all others gone that the plan tells to leave."""
    gone = {order.job_id for order in plan.preempts} - {running}
    one = next(job for job in moment.queue if job.id == waiting)
    run = next(run for run in moment.running if run.job.id == running)
    if starved(moment, one) or one.priority > run.job.priority:
        return True
    mine, other = above_share(moment, one.tenant, one.demand.width, gone), above_share(moment, run.job.tenant, 0, gone)
    if one.tenant != run.job.tenant and mine < other:
        return True
    return level(moment.policy, one.attained) < level(moment.policy, run.attained(moment.now))


def head_keeps_its_promise(told: Story, life: Life) -> Iterator[str]:
    """Where run times are known exactly, nothing fails and nothing is preempted: a job for which a start was reserved while it was
    the first of those that can run starts then at the latest. Void when another comes to stand before it: one that is submitted later,
    where they are not taken first in, first out; one that is starved first; or one that a quota had kept waiting."""
    promised: dict[str, float] = {}
    known: set[str] = set()
    for moment, plan in life.plans:
        jobs = {one.id: one for one in moment.queue}
        first = next((name for name in plan.order if feasible(moment, jobs[name])), "")
        if moment.policy.mode != "fifo" and not jobs.keys() <= known:
            promised.clear()
        for start in plan.starts:
            promised = {name: at for name, at in promised.items() if not comes_before(moment, plan, jobs[start.job_id], jobs[name])}
            if promised.get(start.job_id, math.inf) < moment.now:
                yield f"{start.job_id} was promised {promised[start.job_id]}, and starts at {moment.now}"
        promised = {name: at for name, at in promised.items() if name == first}
        promised |= {kept.job_id: kept.start_s for kept in plan.reservations if kept.job_id == first and first not in promised}
        known |= jobs.keys()


LIVES: tuple[Callable[[Story, Life], Iterator[str]], ...] = (all_ends, protected_between_evictions, no_eviction_is_returned)
