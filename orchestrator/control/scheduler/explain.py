"""Why a job waits, who holds what it needs, when it starts, and what would let it start now. Pure: every answer is a plan."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from orchestrator.control.scheduler.clearing import cheapest
from orchestrator.control.scheduler.estimate import Estimates
from orchestrator.control.scheduler.model import ClusterView, Demand, Job, Plan, Policy, Run, Usage
from orchestrator.control.scheduler.place import Place
from orchestrator.control.scheduler.planner import Planner, plan
from orchestrator.control.scheduler.preempt import Victim, cost
from orchestrator.control.scheduler.reserve import earliest
from orchestrator.errors import StateError, nearest


@dataclass(frozen=True, kw_only=True)
class Explanation:
    """Why a job waits, and what would change it."""

    job_id: str
    position: int
    """In `Plan.order`, from 1; 0: it starts now."""
    reason: str
    holders: tuple[str, ...] = ()
    """The jobs that hold what it needs; of the sets that would do, the cheapest."""
    start_s: float | None = None
    """When it starts: as reserved, or as predicted if nobody else comes; None: not as long as the cluster is as it is."""
    reserved: bool = False
    with_workers: int | None = None
    """The largest legal number of workers with which it would start now."""
    at_priority: int | None = None
    """The lowest priority at which it would start, or have a place cleared for it, now."""


def explain(
    job_id: str, cluster: ClusterView, queue: tuple[Job, ...], running: tuple[Run, ...], usage: Usage, now: float, policy: Policy
) -> Explanation:
    """Of a job that waits, on the nodes that are there. Raises StateError for another."""
    cluster = cluster.there
    jobs = {job.id: job for job in queue}
    if job_id not in jobs:
        raise StateError(f"{job_id} does not wait.{nearest(job_id, sorted(jobs))}")
    return _Question(jobs[job_id], cluster, queue, running, usage, now, policy).answer()


class _Question:
    def __init__(
        self, job: Job, cluster: ClusterView, queue: tuple[Job, ...], running: tuple[Run, ...], usage: Usage, now: float, policy: Policy
    ) -> None:
        self._job, self._others = job, tuple(other for other in queue if other.id != job.id)
        self._cluster, self._running, self._usage, self._now, self._policy = cluster, running, usage, now, policy
        self._estimates = Estimates(usage.history)

    def answer(self) -> Explanation:
        decided, job_id = self._plan(self._job), self._job.id
        if any(start.job_id == job_id for start in decided.starts):
            return Explanation(job_id=job_id, position=0, reason="starts now", start_s=self._now)
        ahead = self._ahead(decided)
        room = Planner(self._cluster, ahead, self._running, self._usage, self._now, self._policy)
        room.decide(grow=False)
        reserved_s = next((kept.start_s for kept in decided.reservations if kept.job_id == job_id), None)
        return Explanation(
            job_id=job_id, position=decided.order.index(job_id) + 1, reason=decided.reasons[job_id], holders=self._holders(room),
            start_s=self._predicted(room, ahead) if reserved_s is None else reserved_s, reserved=reserved_s is not None,
            with_workers=self._with_workers(room), at_priority=self._at_priority(),
        )  # fmt: skip

    def _plan(self, job: Job) -> Plan:
        return plan(self._cluster, (*self._others, job), self._running, self._usage, self._now, self._policy)

    def _ahead(self, decided: Plan) -> tuple[Job, ...]:
        """Who is tried before it, those that start now among them; what starts though it is behind takes nothing from the job."""
        before = set(decided.order[: decided.order.index(self._job.id)])
        everyone = Planner(self._cluster, (*self._others, self._job), self._running, self._usage, self._now, self._policy).queue
        waits = set(decided.order)
        ordered = [job for job in everyone if job.id in before or job.id not in waits]
        turn = everyone.index(self._job)
        return tuple(job for job in ordered if job.id in before or everyone.index(job) < turn)

    def _holders(self, planner: Planner) -> tuple[str, ...]:
        """The runs that lose the least of those that would have to be gone."""
        room = planner.room
        victims = [Victim(run, held, cost(run, self._now)) for run, held in room.staying() if held]
        kind = room.kind(self._job.demand)
        found = cheapest(room.soon, kind.demand, kind.allowed, victims, kind.on_one) if kind.possible and victims else None
        return tuple(sorted(victim.run.job.id for victim in found[0])) if found is not None else ()

    def _predicted(self, planner: Planner, ahead: tuple[Job, ...]) -> float | None:
        """If all run as long as half of the jobs like them, those ahead start one after the other, and nobody else comes. None for a job
        that a quota keeps waiting."""
        if planner.accounts.refusal(self._job, self._job.demand.width):
            return None
        room = planner.room
        placed = {start.job_id for start in planner.starts}.union(planner.cleared)
        grid = room.soon.copy()
        releases: list[tuple[float, Demand, Place]] = [(self._ends_s(run), run.job.demand, held) for run, held in room.staying()]
        soon_s = self._now + self._policy.grace_s
        jobs = {job.id: job for job in ahead}
        releases += [(soon_s + self._left_s(jobs[name]), jobs[name].demand, promised) for name, promised in planner.cleared.items()]
        start_s, before_s = None, self._now
        for job in (*(job for job in ahead if job.id not in placed), self._job):
            kind = room.kind(job.demand)
            releases.sort(key=lambda row: (row[0], row[2]))
            found = earliest(grid, kind.demand, kind.allowed, releases, self._now, kind.on_one) if kind.possible else None
            start_s = None if found is None else max(before_s, found[0])
            if found is not None and start_s is not None:
                grid.take(kind.demand, found[1])
                releases.append((start_s + self._left_s(job), kind.demand, found[1]))
                before_s = start_s if self._policy.mode == "fifo" else self._now
        return start_s

    def _ends_s(self, run: Run) -> float:
        ran_s = run.job.ran_s + self._now - run.started_s
        return self._now + max(self._estimates.total_s(run.job)[0] - ran_s, ran_s)

    def _left_s(self, job: Job) -> float:
        return max(self._estimates.total_s(job)[0] - job.ran_s, job.ran_s, 1.0)

    def _with_workers(self, planner: Planner) -> int | None:
        """Of a job that names no legal sizes, any number that keeps its groups whole."""
        if self._policy.mode == "fifo" and planner.head:
            return None  # first in, first out: its size is not what it waits for
        for demand in self._smaller():
            ends_s = self._now + self._estimates.ends_after_s(self._job, self._job.ran_s) - self._job.ran_s
            kind = planner.room.kind(demand)
            refused = planner.accounts.refusal(self._job, demand.width)
            if kind.possible and not refused and planner.room.find(kind, ends_s) is not None:
                return demand.num_workers
        return None

    def _smaller(self) -> Iterator[Demand]:
        whole = self._job.demand
        for count in reversed(self._job.smaller or range(1, whole.num_workers)):
            group = min(whole.group, count)
            if self._job.smaller or count % group == 0:
                yield replace(whole, num_workers=count, group=group)

    def _at_priority(self) -> int | None:
        """Equal priorities decide by other things: so each that there is may be enough, or one more than that."""
        if self._policy.mode == "fifo":
            return None
        there = {job.priority for job in (*self._others, *(run.job for run in self._running))}
        candidates = sorted({higher for found in there for higher in (found, found + 1) if higher > self._job.priority})
        return next((priority for priority in candidates if self._helps(priority)), None)

    def _helps(self, priority: int) -> bool:
        decided = self._plan(replace(self._job, priority=priority))
        served = {start.job_id for start in decided.starts} | {order.for_job for order in decided.preempts}
        return self._job.id in served.union(order.for_job for order in decided.resizes)
