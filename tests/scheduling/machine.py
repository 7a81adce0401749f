"""A cluster that does what a plan says, and what becomes of its jobs: a second, slow and simple engine beside the simulator's.

It refuses a plan that cannot be carried out: `Impossible`. Time passes only in `advance`, exactly; a job has no other wish than to run
for `needs[job]` seconds on its whole gang, twice as long on half of it. It saves all the time.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace

from scheduling.oracle import held, rooms
from scheduling.strategies import Moment

from orchestrator.control.scheduler.model import ClusterView, Demand, Job, Node, Placement, Plan, Policy, Run, Start, Usage

LAST = 20
"""Run times that are remembered of each tenant and width."""


class Impossible(Exception):
    """An order that the cluster cannot carry out."""


@dataclass(frozen=True, kw_only=True)
class Event:
    at_s: float
    what: str
    """`started`, `failed`, `evicted` (the order), `left`, `resized` (the order) or `done`."""
    job_id: str
    beside: str = ""
    """For whom it was evicted."""
    size: int = 0
    placement: Placement = ()
    """Where it started, or what it left."""


class Machine:
    def __init__(
        self, nodes: Iterable[Node], policy: Policy, now: float, *, restart_s: float = 0.0, leave_s: float = 0.0, learns: bool = True
    ) -> None:
        """Without `learns` it is thought that jobs run for ever, so that their limits are all that is known of them."""
        self.nodes = {node.id: node for node in nodes}
        self.policy, self.now = policy, now
        self.waiting: dict[str, Job] = {}
        self.runs: dict[str, Run] = {}
        self.needs: dict[str, float] = {}
        self.log: list[Event] = []
        self._learns, self._usage = learns, Usage(charged_at_s=now, history={} if learns else {("", 1): (1e9,)})
        self._restart_s, self._leave_s = restart_s, leave_s
        self._done: dict[str, float] = {}  # seconds of its whole gang
        self._leaves: dict[str, float] = {}
        self._moves: dict[str, Placement] = {}

    def submit(self, job: Job, needs_s: float) -> None:
        self.waiting[job.id] = job
        self.needs[job.id], self._done[job.id] = needs_s, 0.0

    def moment(self) -> Moment:
        """What the scheduler is shown now."""
        return Moment(
            cluster=ClusterView(nodes=tuple(self.nodes.values())), queue=tuple(self.waiting.values()), running=tuple(self.runs.values()),
            usage=self._usage, now=self.now, policy=self.policy,
        )  # fmt: skip

    def ends(self) -> dict[str, float]:
        """When each run is done if it is left alone."""
        return {name: self._end(run) for name, run in self.runs.items()}

    def next_event_s(self) -> float:
        """Infinite if nothing runs."""
        return min((*self.ends().values(), *self._leaves.values()), default=math.inf)

    def advance(self, to_s: float) -> None:
        """Jobs that are done by then end, and those that were told to leave have left."""
        while (at := self.next_event_s()) <= to_s:
            self._charge(at)
            ends = self.ends()
            for name in sorted(self.runs):
                if ends[name] <= at:
                    self._finish(name)
                elif self._leaves.get(name, math.inf) <= at:
                    self._go(name)
        self._charge(to_s)

    def lose(self, node_id: str) -> None:
        """The node dies, and with it what runs there: it waits again, with all that it has done."""
        self.nodes[node_id] = replace(self.nodes[node_id], alive=False)
        for name in [name for name, run in self.runs.items() if node_id in dict(run.placement)]:
            self._leave(name)

    def repair(self, node_id: str) -> None:
        self.nodes[node_id] = replace(self.nodes[node_id], alive=True)

    def apply(self, plan: Plan, fails: Collection[str] = ()) -> None:
        """Carry `plan` out; of its starts, those named in `fails` find that a worker of the gang cannot be had, and hold nothing."""
        for start in plan.starts:
            self._start(start, start.job_id in fails)
        for order in plan.preempts:
            self._tell(order.job_id, "evicted", beside=order.for_job)
            self.runs[order.job_id] = replace(self.runs[order.job_id], leaving=True)
        for resize in plan.resizes:
            self._tell(resize.job_id, "resized", resize.for_job, resize.workers)
            if resize.for_job:
                self._move(resize.job_id, resize.placement)
            else:
                self.runs[resize.job_id] = replace(self.runs[resize.job_id], growing=True)
                self._moves[resize.job_id] = resize.placement
        self.waiting = {name: plan.noted(job) for name, job in self.waiting.items()}

    def _start(self, start: Start, fails: bool) -> None:
        job = self.waiting.get(start.job_id)
        if job is None:
            raise Impossible(f"{start.job_id} does not wait")
        if not self._has_room(job.demand, start.placement):
            raise Impossible(f"{start.job_id} does not fit on {start.placement}")
        self.log.append(Event(at_s=self.now, what="failed" if fails else "started", job_id=job.id, placement=start.placement))
        if not fails:
            del self.waiting[job.id]
            self.runs[job.id] = Run(
                job=replace(job, waited_s=job.waited_s + self.now - job.queued_s, reserved_s=None, cleared=(), short_since_s=None),
                placement=start.placement, started_s=self.now, saved_s=math.inf, save_s=self._leave_s, restart_s=self._restart_s,
            )  # fmt: skip
            self.runs[job.id] = self._elastic(self.runs[job.id])

    def _has_room(self, demand: Demand, placement: Placement) -> bool:
        free = rooms((node for node in self.nodes.values() if node.alive), [*held(self.moment()), (demand, placement)])
        return all(node_id in free and min(free[node_id][:2]) >= 0 for node_id, _ in placement)

    def _elastic(self, run: Run) -> Run:
        return replace(run, may_grow=run.workers < max(run.job.demand.num_workers, *run.job.larger, 0))

    def _move(self, name: str, place: Placement) -> None:
        """It goes on there, if there is room, with all that it has done; else it waits."""
        self._leave(name)
        job = self.waiting[name]
        if self._has_room(job.demand, place):
            del self.waiting[name]
            run = Run(
                job=replace(job, resized_s=self.now), placement=place, started_s=self.now, saved_s=math.inf, restart_s=self._restart_s
            )
            self.runs[name] = self._elastic(run)
            self.log.append(Event(at_s=self.now, what="started", job_id=name, placement=place))

    def _tell(self, name: str, what: str, beside: str = "", size: int = 0) -> None:
        run = self.runs.get(name)
        if run is None or run.leaving or run.growing:
            raise Impossible(f"{name} cannot be {what}: it {'does not run' if run is None else 'is leaving already'}")
        self._leaves[name] = self.now + self._leave_s
        self.log.append(Event(at_s=self.now, what=what, job_id=name, beside=beside, size=size))

    def _speed(self, run: Run) -> float:
        return run.workers / run.job.demand.num_workers

    def _end(self, run: Run) -> float:
        return run.started_s + self._owed_s(run) + (self.needs[run.job.id] - self._done[run.job.id]) / self._speed(run)

    def _owed_s(self, run: Run) -> float:
        """Seconds that it takes to go on from where it was."""
        return run.restart_s if run.job.ran_s else 0.0

    def _finish(self, name: str) -> None:
        run = self.runs.pop(name)
        self._leaves.pop(name, None)
        key = (run.job.tenant, run.job.demand.width)
        times = (*self._usage.history.get(key, ()), run.job.ran_s + self.now - run.started_s)
        if self._learns:
            self._usage = replace(self._usage, history={**self._usage.history, key: times[-LAST:]})
        self.log.append(Event(at_s=self.now, what="done", job_id=name, placement=run.placement))

    def _go(self, name: str) -> None:
        place = self._moves.get(name)
        if place is None:
            self._leave(name)
        else:
            self._move(name, place)

    def _leave(self, name: str) -> None:
        run = self.runs.pop(name)
        self._leaves.pop(name, None)
        self._moves.pop(name, None)
        self._done[name] = self._done.get(name, 0.0) + max(0.0, self.now - run.started_s - self._owed_s(run)) * self._speed(run)
        self.waiting[name] = replace(
            run.job, queued_s=self.now, attained=run.attained(self.now), ran_s=run.job.ran_s + self.now - run.started_s,
            preemptions=run.job.preemptions + run.leaving,
        )  # fmt: skip
        self.log.append(Event(at_s=self.now, what="left", job_id=name, placement=run.placement))

    def _charge(self, to_s: float) -> None:
        """Service by tenant, decaying while it is charged: a run of width w adds w dt, of which half is left after a half-life."""
        half = self.policy.usage_half_life_s
        kept = 0.5 ** ((to_s - self.now) / half)
        charged = {tenant: service * kept for tenant, service in self._usage.charged.items()}
        for run in self.runs.values():
            charged[run.job.tenant] = charged.get(run.job.tenant, 0.0) + run.width * half / math.log(2) * (1 - kept)
        self._usage = replace(self._usage, charged=charged, charged_at_s=to_s)
        self.now = to_s
