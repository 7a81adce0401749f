"""The runs that might be told to leave, so arranged that one plan need not look at all of them again for each job that waits."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

from orchestrator.control.scheduler.model import Demand, Policy, Run
from orchestrator.control.scheduler.place import Grid, Place
from orchestrator.control.scheduler.preempt import (
    ALONE,
    ANY_LEVEL,
    Claim,
    Footing,
    Held,
    Search,
    Victim,
    cost,
    level_to_leave,
    protected_until,
)  # fmt: skip


class Victims:
    """Runs of equal priority, tenant and level are a class: a claim is good against all that are in it, or none. Sets of classes are
    integers: bit c stands for class c."""

    def __init__(self, now: float, policy: Policy) -> None:
        self._now, self._policy = now, policy
        self._groups: dict[tuple[int, str], list[Victim]] = {}
        self._classes: dict[tuple[int, str, int], int] = {}
        self._nodes: dict[int, list[tuple[int, Held]]] = {}
        self._gone: set[str] = set()
        self._changed: list[int] = []
        """Nodes, each time that what is free there or who may leave changed."""
        self._searches: dict[tuple[int, Demand], tuple[Search, list[int]]] = {}
        self._next: dict[tuple[int, str, int], float] = {}

    def add(self, run: Run, held: Place) -> None:
        until = protected_until(run, self._policy)
        if until == math.inf or not held:
            return
        victim, job = Victim(run, held, cost(run, self._now), until, run.attained(self._now)), run.job
        self._groups.setdefault((job.priority, job.tenant), []).append(victim)
        if until > self._now:
            return
        at, levels = 0, len(self._policy.levels)
        while at < levels and victim.leaves_level_s(at, self._policy) <= self._now:
            at += 1
        kind = 1 << self._classes.setdefault((job.priority, job.tenant, at), len(self._classes))
        for i, workers in held:
            self._nodes.setdefault(i, []).append((kind, (victim, workers)))

    def __iter__(self) -> Iterator[Victim]:
        return (victim for group in self._groups.values() for victim in group if victim.run.job.id not in self._gone)

    def open_to(self, claim: Claim, tenants: Mapping[str, Footing]) -> int:
        """The classes that the claim is good against now."""
        found = 0
        for (priority, tenant, at), number in self._classes.items():
            level = level_to_leave(claim, priority, tenant, tenants.get(tenant, ALONE), self._policy)
            if level is not None and at > level:
                found |= 1 << number
        return found

    def of(self, classes: int) -> list[Victim]:
        """Those that may leave now."""
        found = {victim.run.job.id: victim for i in self._nodes for victim, _ in self._held(i, classes)}
        return list(found.values())

    def on_one(self, grid: Grid, demand: Demand, among: int, classes: int) -> tuple[int, list[Victim]] | None:
        """(node, who leaves it) for a gang that stays on one. `grid`: the same in all calls, and `touched` is told of each change."""
        known = self._searches.get((classes, demand))
        if known is None:
            search = Search(grid, demand, self._nodes, lambda i: self._held(i, classes))
            known = self._searches[classes, demand] = search, [0]
            known[1][0] = len(self._changed)
        search, position = known
        for i in set(self._changed[position[0] :]):
            search.look_again(i)
        position[0] = len(self._changed)
        return search.best(among)

    def spare(self, job_id: str, held: Place) -> None:
        """It was told to leave, or to shrink: it is no victim any more."""
        self._gone.add(job_id)
        self.touched(held)

    def touched(self, nodes: Place) -> None:
        """What is free there has changed."""
        self._changed += [i for i, _ in nodes if i in self._nodes]

    def next_at(self, claim: Claim, tenants: Mapping[str, Footing]) -> float:
        """When the next of them becomes evictable by the claim; infinite: never."""
        times = [math.inf]
        for priority, tenant in self._groups:
            level = level_to_leave(claim, priority, tenant, tenants.get(tenant, ALONE), self._policy)
            if level is not None:
                times.append(self._next_of(priority, tenant, level))
        return min(times)

    def _next_of(self, priority: int, tenant: str, level: int) -> float:
        key = priority, tenant, level
        if key not in self._next:
            times = (
                victim.free_from_s if level == ANY_LEVEL else max(victim.free_from_s, victim.leaves_level_s(level, self._policy))
                for victim in self._groups[priority, tenant]
            )
            self._next[key] = min((time for time in times if time > self._now), default=math.inf)
        return self._next[key]

    def _held(self, i: int, classes: int) -> list[Held]:
        return [held for kind, held in self._nodes[i] if kind & classes and held[0].run.job.id not in self._gone]
