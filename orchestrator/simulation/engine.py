"""The simulator: a clock that jumps from event to event, and at each asks the planner what the live controller would ask it.

- `fifo` and `batch` plan at each event: a job comes or ends, a node fails or is repaired, `Plan.next_change_at`. `preemptive` plans in
  rounds, at the first multiple of `Policy.round_s` that is not before the event.
- A job that is preempted or resized leaves at once, with all its work saved; the one waits again, the other starts in its new place, and
  the planner is asked again at the same moment. Each start but the first takes `World.preemption_loss_s` before the job goes on. A job
  whose node fails also does again what it did since its last save.
- The planner never sees how long a job will run. It is not asked while no job waits and none that runs could grow, but for one that says
  so (`asked_always`) because it remembers what was.
"""

from __future__ import annotations

import gc
import heapq
import math
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace

from orchestrator.control.scheduler.model import Job, Placement, Plan, Policy, Run
from orchestrator.errors import ConfigError
from orchestrator.simulation.accounts import Accounts
from orchestrator.simulation.cluster import Cluster, SimulationError, demand_of, failures, shapes_by_node
from orchestrator.simulation.model import JobOutcome, Outcome, Planner, Segment, TraceJob, World

END, REPAIR, FAIL, SUBMIT = range(4)
"""Kinds of events; of those at one moment the lower come first."""
_GC_THRESHOLDS = (50_000, 20, 50)
"""Few of the many objects are in cycles, and a plan makes enough of them for a search after each."""
MOST_PLANS = 10
"""At one moment: a planner that wants more preempts in a circle."""


def simulate(trace: Iterable[TraceJob], world: World, planner: Planner, policy: Policy, *, name: str = "", every_round: bool = False,
             progress: Callable[[int, int], None] | None = None, clock: Callable[[], float] = time.perf_counter) -> Outcome:  # fmt: skip
    """What becomes of the jobs of `trace` if `planner` decides. The same arguments give the same outcome.

    `every_round` plans at every multiple of `policy.round_s` too, though nothing has changed. `progress` is told (jobs ended, jobs) after
    each that ends; `clock` measures what the planner takes. Raises ConfigError if a job can never run or an id is there twice,
    SimulationError if a plan cannot be carried out or would let the jobs wait for ever.
    """
    thresholds = gc.get_threshold()
    gc.set_threshold(*_GC_THRESHOLDS)
    try:
        return _Simulation(tuple(trace), world, planner, policy, every_round, progress, clock).run(name or policy.mode)
    finally:
        gc.set_threshold(*thresholds)


@dataclass(slots=True)
class _Life:
    """Of one job: what the planner is not told."""

    trace: TraceJob
    index: int
    left_s: float
    """Run time on `trace.gpus` GPUs of speed 1 that it still needs."""
    owed_s: float = 0.0
    """What its next start takes before it goes on."""
    rate: float = 0.0
    """Of its progress, where it runs now."""
    segments: list[Segment] = field(default_factory=list)
    longest_wait_s: float = 0.0
    lost_gpu_s: float = 0.0


class _Simulation:
    def __init__(self, trace: tuple[TraceJob, ...], world: World, planner: Planner, policy: Policy, every_round: bool,
                 progress: Callable[[int, int], None] | None, clock: Callable[[], float]) -> None:  # fmt: skip
        self._trace, self._world, self._planner, self._policy = trace, world, planner, policy
        self._in_rounds, self._every_round = policy.mode == "preemptive", every_round
        self._progress, self._clock = progress, clock
        self._ask_always = bool(getattr(planner, "asked_always", False))
        self._cluster, self._accounts = Cluster(world), Accounts(policy.usage_half_life_s)
        self._lives = {job.id: _Life(trace=job, index=index, left_s=job.duration_s) for index, job in enumerate(trace)}
        self._refuse_impossible()
        self._events = [(job.submit_s, SUBMIT, index, 0) for index, job in enumerate(trace)]
        self._node_ids = tuple(shapes_by_node(world))
        self._failures = [failures(world, node_id) for node_id in self._node_ids] if world.node_mtbf_s else []
        self._events += [(next(times), FAIL, index, 0) for index, times in enumerate(self._failures)]
        heapq.heapify(self._events)
        self._to_submit = len(trace)
        self._queue: dict[str, Job] = {}
        self._runs: dict[str, Run] = {}
        self._may_grow: set[str] = set()
        self._short: set[str] = set()
        self._promised: set[str] = set()
        """Who is kept a place that others are leaving."""
        self._next_saves: list[tuple[float, str, int]] = []
        self._outcomes: dict[int, JobOutcome] = {}
        self._change_at: float | None = None
        self._timeline: list[tuple[float, int, int]] = []
        self._plan_seconds: list[float] = []

    def run(self, name: str) -> Outcome:
        began, now = self._clock(), -math.inf
        while len(self._outcomes) < len(self._trace):
            now = self._next_moment(now)
            while self._events and self._events[0][0] <= now:
                self._happen(*heapq.heappop(self._events))
            self._plan(now)
        return Outcome(
            policy=name, gpus=self._cluster.gpus, jobs=tuple(self._outcomes[index] for index in range(len(self._trace))),
            timeline=tuple(self._timeline), plans=len(self._plan_seconds), plan_seconds=tuple(self._plan_seconds),
            wall_s=self._clock() - began,
        )  # fmt: skip

    def _refuse_impossible(self) -> None:
        if len(self._lives) < len(self._trace):
            job_id, times = Counter(job.id for job in self._trace).most_common(1)[0]
            raise ConfigError(f"job {job_id} is in the trace {times} times")
        possible = {gpus: self._cluster.could_hold(demand_of(gpus, self._world)) for gpus in {job.gpus for job in self._trace}}
        for job in self._trace:
            if not possible[job.gpus]:
                raise ConfigError(f"job {job.id}: gpus={job.gpus} can never run: the cluster has {self._cluster.gpus} in all")

    def _next_moment(self, now: float) -> float:
        """Of something to happen or to plan."""
        while self._events and self._is_stale(*self._events[0]):
            heapq.heappop(self._events)
        moments = [self._events[0][0]] if self._events else []
        if self._change_at is not None:
            moments.append(max(self._change_at, math.nextafter(now, math.inf)))
        if self._in_rounds and self._queue and self._next_saves:
            moments.append(self._next_saves[0][0])  # who has just saved loses less
        round_s = self._policy.round_s
        if self._in_rounds:
            moments = [math.ceil(moment / round_s) * round_s for moment in moments]
        if self._every_round and now >= 0:
            moments.append((math.floor(now / round_s) + 1) * round_s)
        return min(moments)

    def _is_stale(self, _at: float, kind: int, index: int, segment: int) -> bool:
        """The end of a stay that has ended in another way."""
        return kind == END and segment != len(self._lives[self._trace[index].id].segments)

    def _happen(self, at: float, kind: int, index: int, segment: int) -> None:
        if kind == SUBMIT:
            self._submit(self._trace[index], at)
        elif kind == END:
            if not self._is_stale(at, kind, index, segment):
                self._end(self._trace[index].id, at)
        else:
            self._change_node(self._node_ids[index], index, at, alive=kind == REPAIR)
        self._note(at)

    def _submit(self, job: TraceJob, now: float) -> None:
        self._to_submit -= 1
        self._queue[job.id] = Job(
            id=job.id, demand=demand_of(job.gpus, self._world), submitted_s=now, queued_s=now, tenant=job.tenant, user=job.user,
            priority=job.priority, limit_s=job.limit_s, smaller=tuple(size for size in job.sizes if size < job.gpus),
            larger=tuple(size for size in job.sizes if size > job.gpus),
        )  # fmt: skip

    def _end(self, job_id: str, now: float) -> None:
        job, life = self._leave(job_id, now, "done"), self._lives[job_id]
        self._accounts.ended(job, life.trace.status)
        self._outcomes[life.index] = JobOutcome(
            job=life.trace, first_start_s=life.segments[0].start_s, end_s=now, segments=tuple(life.segments), waited_s=job.waited_s,
            longest_wait_s=life.longest_wait_s, preemptions=job.preemptions, lost_gpu_s=life.lost_gpu_s,
        )  # fmt: skip
        if self._progress:
            self._progress(len(self._outcomes), len(self._trace))

    def _change_node(self, node_id: str, index: int, now: float, alive: bool) -> None:
        self._cluster.set_alive(node_id, alive)
        if alive:
            heapq.heappush(self._events, (next(self._failures[index]), FAIL, index, 0))
            return
        heapq.heappush(self._events, (now + self._world.node_repair_s, REPAIR, index, 0))
        for job_id in [run.job.id for run in self._runs.values() if any(node == node_id for node, _ in run.placement)]:
            self._queue[job_id] = self._leave(job_id, now, "node_lost")

    def _leave(self, job_id: str, now: float, end: str) -> Job:
        """Free its place; the job as it goes on from here."""
        run, life = self._runs.pop(job_id), self._lives[job_id]
        self._may_grow.discard(job_id)
        self._cluster.give_back(run.placement)
        self._accounts.use(run.job.tenant, -run.width, now)
        life.segments.append(Segment(start_s=run.started_s, end_s=now, nodes=run.placement, end=end))
        ran_s = now - run.started_s
        new_s = max(0.0, ran_s - life.owed_s)
        unsaved_s = new_s % self._world.save_interval_s if end == "node_lost" and self._world.save_interval_s else 0.0
        life.lost_gpu_s += (ran_s - new_s + unsaved_s) * run.width
        life.left_s -= (new_s - unsaved_s) * life.rate
        life.owed_s = self._world.preemption_loss_s
        job = replace(run.job, queued_s=now, attained=run.attained(now), ran_s=run.job.ran_s + ran_s, reserved_s=None, cleared=())
        return replace(job, preemptions=job.preemptions + 1) if end == "preempted" else job

    def _plan(self, now: float) -> None:
        self._change_at = None
        for _ in range(MOST_PLANS):
            if not self._queue and not self._may_grow and not self._ask_always:
                return
            self._refresh_saves(now)
            usage, queue, running = self._accounts.usage(now), tuple(self._queue.values()), tuple(self._runs.values())
            began = self._clock()
            plan = self._planner(self._cluster.view, queue, running, usage, now, self._policy)
            self._plan_seconds.append(self._clock() - began)
            self._change_at = plan.next_change_at
            self._apply(plan, now)
            if not plan.preempts and not plan.resizes:
                self._refuse_standstill(plan)
                return
        raise SimulationError(f"at {now:g} s the planner preempts for the {MOST_PLANS}th time, last {plan.preempts or plan.resizes}")

    def _apply(self, plan: Plan, now: float) -> None:
        for preempt in plan.preempts:
            self._queue[preempt.job_id] = self._leave(self._running(preempt.job_id, "preempts"), now, "preempted")
        for resize in plan.resizes:
            job = self._leave(self._running(resize.job_id, "resizes"), now, "resized")
            self._start(replace(job, resized_s=now), resize.placement, now)
        for start in plan.starts:
            if start.job_id not in self._queue:
                raise SimulationError(f"the plan starts {start.job_id}, which does not wait")
            self._start(self._queue.pop(start.job_id), start.placement, now)
        for job_id in {reservation.job_id for reservation in plan.reservations} | self._promised:
            if job_id in self._queue:
                self._queue[job_id] = plan.noted(self._queue[job_id])
        self._promised = {reservation.job_id for reservation in plan.reservations if reservation.cleared}
        self._remember_short(set(plan.short), now)
        if plan.starts or plan.preempts or plan.resizes:
            self._note(now)

    def _running(self, job_id: str, verb: str) -> str:
        if job_id not in self._runs:
            raise SimulationError(f"the plan {verb} {job_id}, which does not run")
        return job_id

    def _start(self, job: Job, placement: Placement, now: float) -> None:
        life = self._lives[job.id]
        life.rate = self._cluster.take(job.id, placement) * self._speedup(life.trace, placement)
        waited_s = now - job.queued_s
        life.longest_wait_s = max(life.longest_wait_s, waited_s)
        saves = self._world.save_interval_s
        run = Run(
            job=replace(job, waited_s=job.waited_s + waited_s), placement=placement, started_s=now,
            saved_s=None if saves else math.inf, restart_s=self._world.preemption_loss_s,
        )  # fmt: skip
        run = replace(run, may_grow=run.workers < max(life.trace.sizes, default=0))
        self._runs[job.id] = run
        self._accounts.use(job.tenant, run.width, now)
        if run.may_grow:
            self._may_grow.add(job.id)
        if saves:
            heapq.heappush(self._next_saves, (now + life.owed_s + saves, job.id, len(life.segments)))
        end = now + life.owed_s + max(0.0, life.left_s) / life.rate
        heapq.heappush(self._events, (end, END, life.index, len(life.segments)))

    def _speedup(self, job: TraceJob, placement: Placement) -> float:
        workers = sum(count for _, count in placement)
        if workers == job.gpus:
            return 1.0
        if workers not in job.sizes:
            raise SimulationError(f"{job.id} was given {workers} GPUs; legal are {job.sizes or job.gpus}")
        return (workers / job.gpus) ** self._world.speedup_exponent

    def _refresh_saves(self, now: float) -> None:
        interval_s = self._world.save_interval_s
        while self._next_saves and self._next_saves[0][0] <= now:
            at, job_id, segment = heapq.heappop(self._next_saves)
            if job_id in self._runs and segment == len(self._lives[job_id].segments):
                saved_s = at + (now - at) // interval_s * interval_s
                self._runs[job_id] = replace(self._runs[job_id], saved_s=saved_s)
                heapq.heappush(self._next_saves, (saved_s + interval_s, job_id, segment))

    def _remember_short(self, short: set[str], now: float) -> None:
        for job_id in short ^ self._short:
            if job_id in self._queue:
                self._queue[job_id] = replace(self._queue[job_id], short_since_s=now if job_id in short else None)
        self._short = short

    def _refuse_standstill(self, plan: Plan) -> None:
        """Nothing runs, nothing will come, and still jobs wait."""
        if self._queue and not self._runs and not self._to_submit and plan.next_change_at is None and self._cluster.whole:
            job_id = next(iter(self._queue))
            why = plan.reasons.get(job_id, "no reason given")
            raise SimulationError(f"{len(self._queue)} jobs would wait for ever, {job_id} because: {why}")

    def _note(self, now: float) -> None:
        if self._timeline and self._timeline[-1][0] == now:
            self._timeline.pop()
        self._timeline.append((now, self._cluster.used, len(self._queue)))
