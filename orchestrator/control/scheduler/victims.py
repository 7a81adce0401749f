"""The runs that might be told to leave, so arranged that one plan need not look at all of them again for each job that waits."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence

from orchestrator.control.scheduler.clearing import Search
from orchestrator.control.scheduler.model import Demand, Policy, Run
from orchestrator.control.scheduler.occupied import Evictable, Group
from orchestrator.control.scheduler.place import Grid, Place
from orchestrator.control.scheduler.preempt import ALONE, Claim, Footing, Held, Victim, cost, grounds, times


class Victims:
    """Runs of equal priority, tenant and level are a class: a claim is good against all that are in it, or none. Sets of classes are
    integers: bit c stands for class c."""

    def __init__(self, now: float, policy: Policy, known: Mapping[Group, Mapping[int, Evictable]]) -> None:
        """`known`: who may be told to leave at some time; with those that are added since."""
        self._now, self._policy = now, policy
        self._groups: dict[Group, list[Evictable]] = {}
        self._classes: dict[tuple[int, str, int], int] = {}
        self._nodes: dict[int, list[tuple[int, Held]]] = {}
        self._gone: set[str] = set()
        self._changed: list[int] = []
        """Nodes, each time that what is free there or who may leave changed."""
        self._searches: dict[tuple[int, Demand], tuple[Search, list[int]]] = {}
        self._next: dict[tuple[int, str, int], float] = {}
        for group, runs in known.items():
            if runs:
                self._groups[group] = list(runs.values())
                self._sort_in(group, self._groups[group])

    def add(self, run: Run, held: Place) -> None:
        when = times(run, self._policy)
        if when[0] < math.inf and held:
            group = run.job.priority, run.job.tenant
            self._groups.setdefault(group, []).append((run, held, when))
            self._sort_in(group, [(run, held, when)])

    def _sort_in(self, group: Group, runs: Sequence[Evictable]) -> None:
        """Those of them that may be told to leave now."""
        now, nodes = self._now, self._nodes
        kinds: dict[int, int] = {}
        for run, held, when in runs:
            if when[0] > now:
                continue
            last = len(when) - 1
            at = bisect_right(when, now, 1, last) - 1
            past = (2 << at) - 1 | (when[last] <= now) << last
            kind = kinds.get(past)
            if kind is None:
                kind = kinds[past] = 1 << self._classes.setdefault((*group, past), len(self._classes))
            victim = Victim(run, held, cost(run, now), (-at, run.attained(now)))
            for i, workers in held:
                if i in nodes:
                    nodes[i].append((kind, (victim, workers)))
                else:
                    nodes[i] = [(kind, (victim, workers))]

    def __iter__(self) -> Iterator[Victim]:
        rows = (row for group in self._groups.values() for row in group if row[0].job.id not in self._gone)
        return (Victim(run, held, cost(run, self._now)) for run, held, _ in rows)

    def open_to(self, claim: Claim, tenants: Mapping[str, Footing]) -> int:
        """The classes that the claim is good against now."""
        found = 0
        for (priority, tenant, past), number in self._classes.items():
            good = grounds(claim, priority, tenant, tenants.get(tenant, ALONE), self._policy)
            if any(past >> ground & 1 for ground in good):
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
        found = [math.inf]
        for priority, tenant in self._groups:
            good = grounds(claim, priority, tenant, tenants.get(tenant, ALONE), self._policy)
            found += [self._next_of(priority, tenant, ground) for ground in good]
        return min(found)

    def _next_of(self, priority: int, tenant: str, ground: int) -> float:
        key = priority, tenant, ground
        if key not in self._next:
            now = self._now
            times_s = [when[ground] for _, _, when in self._groups[priority, tenant] if when[ground] > now]
            self._next[key] = min(times_s, default=math.inf)
        return self._next[key]

    def _held(self, i: int, classes: int) -> list[Held]:
        return [held for kind, held in self._nodes[i] if kind & classes and held[0].run.job.id not in self._gone]
