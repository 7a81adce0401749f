"""What is free, what will be, and who may be asked to leave: what one plan works on, and changes as it decides."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from orchestrator.control.scheduler.clearing import cheapest
from orchestrator.control.scheduler.estimate import Estimates
from orchestrator.control.scheduler.kinds import Kind, possible
from orchestrator.control.scheduler.model import ClusterView, Demand, Job, Placement, Policy, Run
from orchestrator.control.scheduler.occupied import occupied
from orchestrator.control.scheduler.place import Grid, Place, place
from orchestrator.control.scheduler.preempt import ALONE, Claim, Footing, Victim, evictable_from
from orchestrator.control.scheduler.reserve import Release, Reservations
from orchestrator.control.scheduler.resize import due_s, grow, larger_sizes, shrink, without
from orchestrator.control.scheduler.victims import Victims


class Room:
    """Of one plan."""

    def __init__(self, cluster: ClusterView, running: Sequence[Run], now: float, policy: Policy, estimates: Estimates) -> None:
        self._now, self._policy, self._estimates, self._cluster = now, policy, estimates, cluster
        self._running = running
        held = occupied(cluster, running)
        self.grid: Grid = held.grid.copy()
        self.tally = held.tally
        """What runs hold as the plan begins."""
        self._runs, self._leaving = held.runs, held.leaving
        self.growing = sorted(held.growing, key=lambda row: row[0].job.id)
        """Those that were told to leave for a larger place."""
        self._elastic = held.elastic
        self._known = len(self._runs)
        """So many of the runs are known to be elastic or not."""
        self._starting: list[tuple[Job, Place]] = []
        self._soon: Grid | None = None
        self._free: Grid | None = None
        """What is free now, of what is promised too; None as long as nothing is promised."""
        self.reservations = Reservations(self.grid)
        self._kinds: dict[Demand, Kind] = {}
        self._victims: Victims | None = None
        self._looked_at = len(self._runs)
        """So many of the runs are among the victims."""
        self._promises: list[tuple[Demand, Place]] = []
        self._ends: dict[str, float] = {}
        self._refused: set[tuple[Any, ...]] = set()
        self._gone: set[str] = set()
        """Who was told to leave, or to shrink."""
        self._shrunk: dict[str, Place] = {}

    def kind(self, demand: Demand) -> Kind:
        found = self._kinds.get(demand)
        if found is None:
            memo = self._cluster.memo
            if demand not in memo:
                memo[demand] = possible(self._cluster, memo["empty"], demand)
            found = self._kinds[demand] = Kind(demand, *memo[demand])
        return found

    def find(self, kind: Kind, ends_s: float) -> Place | None:
        """A place that is free now, for a gang that is expected to have left by `ends_s`."""
        if kind.full and (kind.crowded or ends_s > self.reservations.first_s):
            return None
        found = self.reservations.place(kind.demand, kind.allowed, kind.on_one, ends_s)
        if found is None:
            kind.full = True
            kind.crowded = ends_s <= self.reservations.first_s or place(self.grid, kind.demand, kind.allowed, kind.on_one) is None
        return found

    def start(self, job: Job, demand: Demand, taken: Place, ends_s: float) -> None:
        """The job is given that now; it is a run from here on."""
        self._starting.append((job, taken))
        self.grid.take(demand, taken)
        if self._free is not None:
            self._free.take(demand, taken)
        if self._soon is not None:
            self._soon.take(demand, taken)
            if self._victims is not None:
                self._victims.touched(taken)
        self.reservations.take(demand, taken, ends_s)

    @property
    def runs(self) -> list[tuple[Run, Place]]:
        """Those that were not told to leave before, and those that start now."""
        for job, held in self._starting:
            as_run = replace(job, waited_s=job.waited_s + self._now - job.queued_s)
            run = Run(job=as_run, placement=self.grid.named(held), started_s=self._now, may_grow=bool(job.smaller or job.larger))
            self._runs.append((run, held))
        self._starting.clear()
        return self._runs

    @property
    def elastic(self) -> list[tuple[Run, Place]]:
        """Of these, those that may shrink."""
        for row in self.runs[self._known :]:
            if row[0].job.smaller:
                self._elastic.append(row)
        self._known = len(self._runs)
        return self._elastic

    @property
    def everyone(self) -> list[tuple[Run, Place]]:
        """Those that were told to leave before as well."""
        return self.runs + self._leaving

    def leavers(self, place: Place) -> list[str]:
        """Who has been told to leave, or to shrink, there."""
        nodes = {i for i, _ in place}
        rows = [*self._leaving, *((run, held) for run, held in self._runs if run.job.id in self._gone)]
        return sorted(run.job.id for run, held in rows if not nodes.isdisjoint(i for i, _ in held))

    @property
    def soon(self) -> Grid:
        """What is free when all who were told to leave have left, and those whom they leave for have started."""
        if self._soon is None:
            self._soon = self.grid.copy()
            for run, held in self._leaving:
                self._soon.give(run.job.demand, held)
        return self._soon

    def is_wider(self) -> bool:
        """Whether what is promised is free already, or more is beside it than was known when it was."""
        grid, soon, free = self.grid, self.soon, self._free or self.grid
        nodes = {i for _, place in self._promises for i, _ in place}
        return any(free.has(demand, place) for demand, place in self._promises) or any(
            min(soon.gpus[i], free.gpus[i]) > grid.gpus[i] or min(soon.cpus[i], free.cpus[i]) > grid.cpus[i] for i in nodes
        )

    def find_soon(self, kind: Kind) -> Place | None:
        """A place that is being cleared already; it is promised to the gang."""
        if not self._leaving and not self._gone:
            return None
        found = place(self.soon, kind.demand, kind.allowed & ~self.reservations.nodes, kind.on_one)
        if found is not None:
            self._promise(kind.demand, found)
        return found

    def keep(self, kind: Kind, placement: Placement) -> Place | None:
        """The place that a gang was promised before, which is promised to it again; None: it is gone."""
        promised = self.grid.indexed(placement)
        if len(promised) < len(placement) or not self.soon.has(kind.demand, promised):
            return None
        self._promise(kind.demand, promised)
        return promised

    def redeem(self, kind: Kind, promised: Place, ends_s: float, elsewhere: bool) -> Place | None:
        """Where a gang that was promised a place can start now: there, or `elsewhere`; what it was promised is given back then."""
        free = self._free or self.grid
        found = promised if free.has(kind.demand, promised) else self.find(kind, ends_s) if elsewhere else None
        if found is not None:
            self.soon.give(kind.demand, promised)
            self.grid.renew(promised, free, self.soon)
            for other in self._kinds.values():
                other.full = other.crowded = False
        return found

    def evict(self, kind: Kind, claim: Claim, least_gain: float, tenants: Mapping[str, Footing]) -> tuple[list[Victim], Place] | None:
        """(who leaves for a gang, the place that it is promised); None if nobody may, or for no gain. `tenants`: what they are on."""
        victims = self.victims
        classes = victims.open_to(claim, tenants)
        question = classes, kind.demand, claim.starved, claim.level
        if not classes or question in self._refused:
            return None
        found, among = None, kind.allowed & ~self.reservations.nodes
        if not kind.on_one:
            found = cheapest(self.soon, kind.demand, among, victims.of(classes), on_one=False)
        elif (on_one := victims.on_one(self.soon, kind.demand, among, classes)) is not None:
            found = on_one[1], ((on_one[0], kind.demand.num_workers),)
        if found is None or not self._is_worth(kind.demand, claim, found[0], least_gain):
            self._refused.add(question)
            victims.touched(() if found is None else found[1])
            return None
        for victim in found[0]:
            self._gone.add(victim.run.job.id)
            self.soon.give(victim.run.job.demand, victim.place)
            victims.spare(victim.run.job.id, victim.place)
        self._promise(kind.demand, found[1])
        return found

    def shrink(self, kind: Kind) -> tuple[list[tuple[Run, Place]], Place] | None:
        """((run, what it keeps) of each that gives up workers for a gang, the place that it is promised); None if that does not help."""
        if not kind.on_one or (None, kind.demand) in self._refused:
            return None
        interval_s, among = self._policy.resize_interval_s, kind.allowed & ~self.reservations.nodes
        open_to = [row for row in self.elastic if self.is_settled(*row) and due_s(row[0], interval_s) <= self._now]
        drops = shrink(self.soon, open_to, kind.demand, among) if open_to else []
        if not drops:
            self._refused.add((None, kind.demand))
            return None
        kept = [(drop.run, without(next(held for run, held in open_to if run is drop.run), drop)) for drop in drops]
        for run, rest in kept:
            self._shrunk[run.job.id] = rest
        for drop in drops:
            self._gone.add(drop.run.job.id)
            self.victims.spare(drop.run.job.id, drop.freed)
            self.soon.give(drop.run.job.demand, drop.freed)
        promised = ((drops[0].node, kind.demand.num_workers),)
        self._promise(kind.demand, promised)
        return kept, promised

    def grow(self, run: Run, held: Place, whole_only: bool, most_width: float = math.inf) -> Place | None:
        """A place with more workers for a run, which is kept for it from now on."""
        return grow(self.grid, run, held, larger_sizes(run, whole_only, most_width), self.kind(run.job.demand).allowed)

    def is_settled(self, run: Run, held: Place) -> bool:
        """Nobody has told it to leave, and none of its nodes goes."""
        return not run.growing and not run.leaving and run.job.id not in self._gone and len(held) == len(run.placement)

    def staying(self) -> list[tuple[Run, Place]]:
        """The runs that this plan has not told to leave, and what they keep."""
        rows = ((run, self._shrunk.get(run.job.id, held)) for run, held in self.runs)
        return [(run, held) for run, held in rows if run.job.id not in self._gone or run.job.id in self._shrunk]

    def reserve(self, kind: Kind, claim: Claim | None, tenants: Mapping[str, Footing]) -> tuple[float, Place] | None:
        """Keep the earliest place for a gang. `claim`: by which runs will be told to leave for it, once they may be; None: none will."""
        self.releases = sorted(self._releases(claim, tenants), key=lambda row: (row[0], row[2]))
        for other in self._kinds.values():
            other.full = other.crowded = False
        soon_s = self._now + self._policy.grace_s
        return self.reservations.reserve(kind.demand, kind.allowed, kind.on_one, self.soon, soon_s, self.releases)

    @property
    def victims(self) -> Victims:
        if self._victims is None:
            self._victims = Victims(self._now, self._policy, occupied(self._cluster, self._running).evictable(self._policy))
        for run, held in self.runs[self._looked_at :]:
            self._victims.add(run, held)
        self._looked_at = len(self._runs)
        return self._victims

    def ends_s(self, run: Run) -> float:
        """When a run is expected to have ended."""
        found = self._ends.get(run.job.id)
        if found is None:
            found = self._ends[run.job.id] = self._estimates.ends_s(run.job, run.started_s - run.job.ran_s, self._now)
        return found

    def _promise(self, demand: Demand, promised: Place) -> None:
        if self._free is None:
            self._free = self.grid.copy()
        self.soon.take(demand, promised)
        self.grid.narrow(self.soon, promised)
        self._promises.append((demand, promised))
        self.reservations.take(demand, promised, math.inf)
        if self._victims is not None:
            self._victims.touched(promised)

    def _is_worth(self, demand: Demand, claim: Claim, victims: Sequence[Victim], least_gain: float) -> bool:
        """Whether the gang waits so much less that it pays for what is lost. One that is starved is not asked."""
        if claim.starved:
            return True
        had = self._policy.levels[claim.level] if claim.level < len(self._policy.levels) else 0.0
        wait_s = max(self._left_s(victim.run, had) for victim in victims)
        return demand.width * wait_s >= least_gain * math.fsum(victim.cost for victim in victims)

    def _left_s(self, run: Run, had: float) -> float:
        """Expected run time to the end of one that has had so much service at least. The same at all times, so that what is no gain now
        will be none later."""
        return max(run.job.demand.width * self._estimates.total_s(run.job)[0] - had, had) / run.width

    def _releases(self, claim: Claim | None, tenants: Mapping[str, Footing]) -> list[tuple[float, Demand, Place]]:
        free_from: dict[str, float] = {}
        if claim is not None:
            for victim in self.victims:
                at = evictable_from(claim, victim, self._policy, tenants.get(victim.run.job.tenant, ALONE))
                free_from[victim.run.job.id] = max(self._now, at)
        return [(min(self.ends_s(run), free_from.get(run.job.id, math.inf)), run.job.demand, held) for run, held in self.staying()]

    releases: Sequence[Release] = ()
    """Of the newest reservation."""
