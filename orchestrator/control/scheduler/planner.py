"""`plan`: the parts put together. Pure: all that a plan works on is made for it.

The jobs that wait are tried in order. One that has no place may have others shrunk for it, then evicted; if it is starved, or its turn has
come long ago, the earliest place is kept for it. What a gang asked for in vain it need not be asked again in the same plan: what is free
only becomes less. Those behind go on as far as they leave to it what is kept.
"""

from __future__ import annotations

import gc
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

from orchestrator.control.scheduler import reasons as why
from orchestrator.control.scheduler.admit import Accounts
from orchestrator.control.scheduler.estimate import Estimates
from orchestrator.control.scheduler.kinds import Kind
from orchestrator.control.scheduler.line import Block, Line, block_of, without
from orchestrator.control.scheduler.model import ClusterView, Demand, Job, Plan, Policy, Preempt, Reservation, Resize, Run, Start, Usage
from orchestrator.control.scheduler.order import Turns, fifo_key
from orchestrator.control.scheduler.place import Place
from orchestrator.control.scheduler.preempt import Claim, Footing
from orchestrator.control.scheduler.resize import due_s
from orchestrator.control.scheduler.room import Room
from orchestrator.control.scheduler.tenants import Tenants


def plan(cluster: ClusterView, queue: tuple[Job, ...], running: tuple[Run, ...], usage: Usage, now: float, policy: Policy) -> Plan:
    """What to do at `now`. The same for every order of nodes, queue and running jobs."""
    was_enabled = gc.isenabled()
    gc.disable()  # a search for cycles goes over all jobs that wait, finds none, and takes as long as a plan
    try:
        planner = Planner(cluster, queue, running, usage, now, policy)
        decided = following = planner.decide()
        while planner.goes_on:
            planner = planner.after(following)
            following = planner.decide()
            decided = decided.then(following)
        return decided
    finally:
        if was_enabled:
            gc.enable()


class Before(NamedTuple):
    """Of another plan of this moment."""

    turns: Turns | None
    blocks: list[Block]
    """Who waits still."""
    left_for: frozenset[str]
    """The jobs that others were told to leave for."""


class Planner:
    """One plan while it is made; `explain` asks it what was left in the end."""

    def __init__(
        self, cluster: ClusterView, queue: Sequence[Job], running: Sequence[Run], usage: Usage, now: float, policy: Policy,
        before: Before | None = None,
    ) -> None:  # fmt: skip
        """`before`: then `queue` is not looked at."""
        self._cluster, self._running, self._usage, self._now, self._policy = cluster, running, usage, now, policy
        self._estimates = Estimates(usage.history)
        self.room = Room(cluster, running, now, policy, self._estimates)
        self.accounts = Accounts(policy, self.room.tally)
        self._fifo, self._preemptive = policy.mode == "fifo", policy.mode == "preemptive"
        for run, held in self.room.growing:
            if (larger := self.room.grow(run, held, self._fifo, self.accounts.left(run.job))) is not None:
                self.accounts.grows(run.job, (sum(count for _, count in larger) - run.workers) * (run.job.demand.gpus or 1))
        self._changes: list[float] = []
        self._left_for = frozenset[str]() if before is None else before.left_for
        self._turns: Turns | None = None
        self._starved: set[str] = set()
        self._promised: dict[str, tuple[Kind, Place]] = {}
        """Who keeps the place that others were told to leave for it before."""
        self._blocks = self._ordered(queue) if before is None else self._ordered_as(before)
        self.starts: list[Start] = []
        self._preempts: list[Preempt] = []
        self._reservations: list[Reservation] = []
        self.cleared: dict[str, Place] = {}
        """The places that others are leaving, by the job that each is promised to."""
        self._reasons: dict[str, Callable[[], str]] = {}
        self._words: dict[Demand, str] = {}
        """Why gangs wait."""
        self._short: list[str] = []
        self._waiting: list[Job] = []
        self._order: list[str] = []
        """Their ids."""
        self._started: list[Job] = []
        self._kept: list[Job] = []
        """Those that are promised a place, or kept one."""
        self._claims: dict[Claim, int] = {}
        """What was claimed in vain, and against which classes of victims."""
        self._resizes: list[Resize] = []
        self.head = ""  # who keeps all behind it waiting
        self._blocked = False
        """A job waits that could run."""
        self._hopeless: set[tuple[Any, ...]] = set()
        """What was tried in vain, and would be again."""
        self._in_vain: set[str] = set()
        """So were jobs that are alike."""
        self._reserved_all = not policy.max_reservations
        """No more places are kept: a quarter of the nodes, if not fewer, may be waited for at once."""
        self._clears_late = False
        """A place is promised that is being left, though a reservation was made before."""
        self._wants_less = False
        """A job has started with fewer workers than its tenant's share was reckoned with."""
        self._limits = any(tenant.quota or tenant.jobs_per_user for tenant in policy.tenants.values())

    def decide(self, grow: bool = True) -> Plan:
        """`grow`: runs may be given more workers if nobody waits."""
        later: list[Block] = []
        priority: int | None = None
        for block in self._not_redeemed():
            if later and block.jobs[0].priority != priority:
                self._try_all(later)
                later = []
            priority = block.jobs[0].priority
            if (rest := self._try_block(block, self._tenants.are_several)).jobs:
                later.append(rest)
        self._try_all(later)
        if grow and not self._blocked:
            self._grow()
        return Plan(
            starts=tuple(self.starts), preempts=tuple(self._preempts), resizes=tuple(self._resizes),
            reservations=tuple(self._reservations), order=tuple(self._order),
            reasons=why.Reasons(self._waiting, self._reasons, self._why_waiting), short=tuple(self._short),
            next_change_at=self._next_change(),
        )  # fmt: skip

    @property
    def goes_on(self) -> bool:
        """Once what was decided is done, more may be done at this moment: for a tenant that is under its share then, or against one that is
        above it, on a node from which more leaves than was known when it was promised, or before a reservation that comes sooner. Not where
        somebody shrinks: that is done at once."""
        if self._resizes:
            return False
        if self._wants_less and self._waiting and self._tenants.are_several:  # others deserve more of what is there
            return True
        return self._clears_late or (bool(self._preempts) and (self._tenants.are_several or self.room.is_wider())) or self._claims_more()

    def _claims_more(self) -> bool:
        """Whether what has started has made more of those that run evictable for one that waits."""
        footings = self._tenants.footings() if self.starts else {}
        return bool(footings) and any(self.room.victims.open_to(claim, footings) & ~known for claim, known in self._claims.items())

    def after(self, decided: Plan) -> Planner:
        """For what waits, in the same order, and what runs, once the plan is carried out and before anybody has left."""
        told = {order.job_id for order in self._preempts}
        blocks = without(self._blocks, self._started, self._kept, decided.noted)
        running = [replace(run, leaving=True) if run.job.id in told else run for run, _ in self.room.everyone]
        left_for = self._left_for.union(order.for_job for order in self._preempts)
        return Planner(self._cluster, (), running, self._usage, self._now, self._policy, Before(self._turns, blocks, left_for))

    # order

    @property
    def queue(self) -> list[Job]:
        """Who is next first."""
        return [job for block in self._blocks for job in block.jobs]

    def _ordered(self, queue: Sequence[Job]) -> list[Block]:
        if self._fifo:
            blocks = [block_of(sorted(queue, key=fifo_key))] if queue else []
            self._tenants = self._tenants_of(blocks)
            return blocks
        line: Line = self._cluster.memo.setdefault("line", Line())
        line.follow(queue)
        others = line.others
        self._tenants = self._tenants_of([*line.blocks, block_of(others)])
        widest = len(self.room.grid.buckets) - 1
        self._turns = Turns(line, self._now, self._policy, self._tenants.ranks, self._estimates, widest)
        self._starved = self._turns.starved
        self._keep_promises(others)
        return self._turns.blocks

    def _ordered_as(self, before: Before) -> list[Block]:
        self._tenants, self._turns = self._tenants_of(before.blocks), before.turns
        self._starved = before.turns.starved if before.turns is not None else set()
        self._keep_promises(job for block in before.blocks if not block.alike for job in block.jobs)
        return before.blocks

    def _tenants_of(self, blocks: Iterable[Block]) -> Tenants:
        return Tenants(self.accounts, blocks, self._cluster, self._running, self._usage, self._now, self._policy)

    def _keep_promises(self, jobs: Iterable[Job]) -> None:
        for job in sorted((job for job in jobs if job.cleared), key=lambda job: (job.reserved_s or 0.0, job.queued_s, job.id)):
            self._keep(job)

    def _not_redeemed(self) -> list[Block]:
        """Without those that start where they were promised to, before all others."""
        if not self._promised:
            return self._blocks
        found = []
        for block in self._blocks:
            if block.alike:
                found.append(block)
            elif rest := [job for job in block.jobs if not self._is_redeemed(job)]:
                found.append(block if len(rest) == len(block.jobs) else block_of(rest))
        return found

    def _keep(self, job: Job) -> None:
        """It still has the place that others were told to leave for it, if that is there."""
        workers = sum(count for _, count in job.cleared)
        kind = self.room.kind(job.demand if workers == job.demand.num_workers else replace(job.demand, num_workers=workers))
        if not self.accounts.refusal(job, kind.demand.width) and (found := self.room.keep(kind, job.cleared)) is not None:
            self.accounts.add(job, kind.demand.width)
            self._promised[job.id] = kind, found

    # one job

    def _try_all(self, blocks: Iterable[Block]) -> None:
        for block in blocks:
            self._try_block(block, within_share=False)

    def _try_block(self, block: Block, within_share: bool) -> Block:
        """Try each of them. Returns those that are left for later: `within_share`, what would give their tenant more than its share."""
        later: list[Job] = []
        for number, job in enumerate(block.jobs):
            within = not within_share or job.id in self._starved or self._tenants.stays_within_share(job, job.id in self._promised)
            if not within:
                if block.alike:
                    return block.since(number)
                later.append(job)
            elif job.alike in self._in_vain and (self._reserved_all or self._now < job.queued_s + self._policy.reserve_after_s):
                if not self._reserved_all:
                    self._changes.append(job.queued_s + self._policy.reserve_after_s)
                if block.alike:  # nothing that changes this comes before the last of them
                    self._waiting += block.jobs[number:]
                    self._order += block.ids[number:]
                    break
                self._wait(job)
            elif job.cleared and job.id in self._promised:
                if job.id in self._left_for or not self._is_redeemed(job, elsewhere=True):
                    self._wait(job)
                    self._blocked = True
                    self._promise(job, *self._promised[job.id])
            else:
                self._try(job)
        return block_of(later)

    def _is_redeemed(self, job: Job, elsewhere: bool = False) -> bool:
        """A job that was promised a place starts there, before all others, if it is free; when its turn comes, also `elsewhere`."""
        if job.id not in self._promised:
            return False
        kind, promised = self._promised[job.id]
        ends_s = self._now + self._estimates.ends_after_s(job, job.ran_s) - job.ran_s
        found = self.room.redeem(kind, promised, ends_s, elsewhere)
        if found is not None:
            self.accounts.charge(job, kind.demand.width)
            self._place_at(job, kind, found, ends_s)
        return found is not None

    def _try(self, job: Job) -> None:
        kind: Kind | None = self.room.kind(job.demand)
        if kind is not None and not kind.possible:
            kind = self._smaller_kind(job)
        if kind is None:
            return
        if self._fifo and self.head:
            self._wait(job, partial(why.behind, self.head))
        elif self._policy.tenants and (refusal := self.accounts.refusal(job, kind.demand.width)):
            within = (self.room.kind(demand) for demand in self._smaller_demands(job) if not self.accounts.refusal(job, demand.width))
            if (smaller := next((kind for kind in within if kind.possible), None)) is not None:
                self._place(job, smaller)
            else:
                self._wait(job, lambda: refusal)
        else:
            self._place(job, kind)

    def _place(self, job: Job, kind: Kind) -> None:
        ends_s = self._now + self._estimates.ends_after_s(job, job.ran_s) - job.ran_s
        mark = id(kind), job.tenant, job.priority, job.attained, job.id in self._starved, ends_s <= self.room.reservations.first_s
        if not job.smaller and mark in self._hopeless and not self._may_reserve(job):
            self._wait(job)
            self._give_up(job, mark)
            return
        for size in (kind, *self._smaller_kinds(job, kind)):
            if (found := self.room.find(size, ends_s)) is not None:
                self._start(job, size, found, ends_s)
                return
        self._blocked = True
        self._wait(job, None if kind.demand is job.demand else partial(self._why_waiting, job, kind))
        if self._fifo:
            self.head = job.id
        elif self._make_room(job, kind):
            self._hopeless.clear()
            self._in_vain.clear()
        elif not job.smaller:
            self._give_up(job, mark)

    def _give_up(self, job: Job, mark: tuple[Any, ...]) -> None:
        """What it was refused need not be tried again."""
        self._hopeless.add(mark)
        if job.alike and not self._limits and job.id not in self._starved:
            self._in_vain.add(job.alike)

    def _smaller_kind(self, job: Job) -> Kind | None:
        """For a gang that nodes are missing for: what of it is tried now, or None, and the reason is told."""
        self._short.append(job.id)
        sizes = (self.room.kind(demand) for demand in self._smaller_demands(job))
        kind = next((kind for kind in sizes if kind.possible), None)
        if kind is None:
            self._wait(job, partial(why.infeasible, self._cluster.usable, job.demand))
            return None
        starts_at = (self._now if job.short_since_s is None else job.short_since_s) + job.shrink_after_s
        if starts_at <= self._now or (self._fifo and self.head):
            return kind
        self._wait(job, partial(why.short, self._cluster.usable, job, kind.demand))
        self._changes.append(starts_at)
        self.head, self._blocked = self.head or job.id, True
        return None

    def _smaller_kinds(self, job: Job, below: Kind) -> Iterator[Kind]:
        """With how many workers fewer it may start although nodes are not missing but in use."""
        if not self._fifo:
            yield from (self.room.kind(demand) for demand in self._smaller_demands(job) if demand.num_workers < below.demand.num_workers)

    def _smaller_demands(self, job: Job) -> Iterator[Demand]:
        return (replace(job.demand, num_workers=count) for count in reversed(job.smaller))

    def _start(self, job: Job, kind: Kind, found: Place, ends_s: float) -> None:
        self.accounts.start(job, kind.demand.width)
        self._place_at(job, kind, found, ends_s)

    def _place_at(self, job: Job, kind: Kind, found: Place, ends_s: float) -> None:
        self._started.append(job)
        self._wants_less = self._wants_less or kind.demand.num_workers < job.demand.num_workers
        self.room.start(job, kind.demand, found, ends_s)
        if len(self.room.reservations):  # beside it until then, as expected
            self._changes.append(ends_s)
        placement = self.room.grid.named(found)
        self.starts.append(Start(job_id=job.id, placement=placement, warning=why.excluded_but_taken(self._cluster.excluded, placement)))

    def _wait(self, job: Job, reason: Callable[[], str] | None = None) -> None:
        """`reason`: None if it is the usual one."""
        self._waiting.append(job)
        self._order.append(job.id)
        if reason is not None:
            self._reasons[job.id] = reason

    def _make_room(self, job: Job, kind: Kind) -> bool:
        """Others shrink for it, else others leave, else a place is kept for it; or none of it: False."""
        if (found := self.room.find_soon(kind)) is not None:
            self._clear(job, kind, found)
        elif (given := self.room.shrink(kind)) is not None:
            self._resizes += [self._resize(run, held, job.id) for run, held in given[0]]
            self._clear(job, kind, given[1])
        elif not self._preemptive:
            return self._reserve(job, kind, None)
        else:
            claim, footings = self._tenants.claim(job, job.id in self._starved), self._tenants.footings()
            if not self._evict(job, kind, claim, footings):
                open_to = self.room.victims.open_to(claim, footings)
                self._claims[claim] = self._claims.get(claim, open_to) & open_to
                return self._reserve(job, kind, claim)
        return True

    def _evict(self, job: Job, kind: Kind, claim: Claim, footings: dict[str, Footing]) -> bool:
        found = self.room.evict(kind, claim, self._policy.gain_factor, footings)
        if found is None:
            return False
        victims, place = found
        for victim in victims:
            self.accounts.leaves(victim.run)
            receipt = why.receipt(job.id, victim.cost, claim.starved)
            self._preempts.append(Preempt(job_id=victim.run.job.id, for_job=job.id, cost=victim.cost, why=receipt))
        self._clear(job, kind, place)
        return True

    def _clear(self, job: Job, kind: Kind, place: Place) -> None:
        """The job is promised a place that others are about to leave."""
        self._clears_late = self._clears_late or len(self.room.reservations) > 0
        self.accounts.add(job, kind.demand.width)
        self._promise(job, kind, place)

    def _promise(self, job: Job, kind: Kind, place: Place) -> None:
        soon_s, placement = self._now + self._policy.grace_s, self.room.grid.named(place)
        self._kept.append(job)
        self._reservations.append(Reservation(job_id=job.id, start_s=soon_s, placement=placement, cleared=True))
        self.cleared[job.id] = place
        self._reasons[job.id] = lambda: why.cleared(kind.demand, self.room.leavers(place))

    def _grow(self) -> None:
        for run, held in sorted(self.room.runs, key=lambda row: row[0].job.id):
            if not run.may_grow or not self.room.is_settled(run, held):
                continue
            due = due_s(run, 0.0 if self._fifo else self._policy.resize_interval_s)
            if due > self._now:
                self._changes.append(due)
            elif (found := self.room.grow(run, held, self._fifo, self.accounts.left(run.job))) is not None:
                self._resizes.append(self._resize(run, found))
                self.accounts.wider(run.job, (self._resizes[-1].workers - run.workers) * (run.job.demand.gpus or 1))

    def _resize(self, run: Run, place: Place, for_job: str = "") -> Resize:
        placement = self.room.grid.named(place)
        return Resize(job_id=run.job.id, workers=sum(count for _, count in place), placement=placement, for_job=for_job)

    def _may_reserve(self, job: Job) -> bool:
        """Whether a place may be kept for it."""
        if self._reserved_all:
            return False
        due_s = job.queued_s + self._policy.reserve_after_s
        if self._now < due_s and job.id not in self._starved:
            self._changes.append(due_s)
            return False
        return True

    def _reserve(self, job: Job, kind: Kind, claim: Claim | None) -> bool:
        found = self.room.reserve(kind, claim, self._tenants.footings()) if self._may_reserve(job) else None
        if found is None:
            return False
        start_s, place = found
        kept = self.room.reservations
        self._reserved_all = len(kept) >= self._policy.max_reservations or 4 * kept.nodes.bit_count() >= len(self._cluster.usable)
        self.accounts.promise(job, kind.demand.width)
        self._kept.append(job)
        self._reservations.append(Reservation(job_id=job.id, start_s=start_s, placement=self.room.grid.named(place)))
        self._reasons[job.id] = lambda: self._why_waiting(job, kind) + why.reserved(start_s - self._now)
        self._changes += [time_s for time_s, *_ in self.room.releases if self._now < time_s <= start_s]
        return True

    # what is told

    def _why_waiting(self, job: Job, kind: Kind | None = None) -> str:
        """The same for all gangs that are alike. Read when all is decided."""
        kind = kind or self.room.kind(job.demand)
        if kind.demand not in self._words:
            self._words[kind.demand] = self._why_kind_waits(kind)
        return self._words[kind.demand]

    def _why_kind_waits(self, kind: Kind) -> str:
        usable, grid = self._cluster.usable, self.room.grid
        allowed = [i for i in range(len(usable)) if kind.allowed >> i & 1]
        started = [start.job_id for start in self.starts]
        holders = sorted(run.job.id for run, held in self.room.runs if held and run.job.id not in started) + started
        reason = why.waiting(kind.demand, [(grid.cpus[i], grid.gpus[i]) for i in allowed], holders)
        return reason + why.kept_out((node for node in usable if node.has(kind.demand.labels)), [usable[i] for i in allowed])

    def _next_change(self) -> float | None:
        if self._turns is not None:
            self._changes.append(self._turns.starve_next({job.id for job in self._started}))
        if self._waiting:
            self._changes.append(self._tenants.change_at())
        if self._blocked and not self._fifo:
            self._changes += [due_s(run, self._policy.resize_interval_s) for run, _ in self.room.elastic]
        tenants = self._tenants.footings()
        for claim in self._claims:
            self._changes.append(self.room.victims.next_at(claim, tenants))
        return min((time for time in self._changes if self._now < time < math.inf), default=None)
