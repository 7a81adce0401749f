"""The runs that might be told to leave, so arranged that one plan need not look at all of them again for each job that waits."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping

from orchestrator.control.scheduler.clearing import Search
from orchestrator.control.scheduler.model import Demand, Policy, Run
from orchestrator.control.scheduler.occupied import Group
from orchestrator.control.scheduler.place import Grid, Place
from orchestrator.control.scheduler.preempt import ALONE, Claim, Footing, Held, Victim, cost, grounds, times
from orchestrator.control.scheduler.timetable import Evictable, Timetable


class Victims:
    """Runs of equal priority, tenant and level are a class: a claim is good against all that are in it, or none. Sets of classes are
    integers: bit c stands for class c. They are arranged once a claim is good against anybody, which most are not."""

    def __init__(self, now: float, policy: Policy, known: Mapping[Group, Timetable]) -> None:
        """`known`: who may be told to leave at some time; with those that are added since. It is not to change."""
        self._now, self._policy, self._known = now, policy, known
        self._added: dict[Group, Timetable] = {}
        self._is_arranged = False
        self._classes: dict[tuple[int, str, int], int] = {}
        self._nodes: dict[int, list[tuple[int, Held]]] = {}
        self._gone: set[str] = set()
        self._changed: list[int] = []
        """Nodes, each time that what is free there or who may leave changed."""
        self._searches: dict[tuple[int, Demand], tuple[Search, list[int]]] = {}

    def add(self, run: Run, held: Place) -> None:
        when = times(run, self._policy)
        if when[0] < math.inf and held:
            group, row = (run.job.priority, run.job.tenant), Evictable(run, held, when)
            self._added.setdefault(group, Timetable()).add(id(run), row)
            if self._is_arranged:
                self._sort_in(group, (row,))

    def _arrange(self) -> None:
        if not self._is_arranged:
            self._is_arranged = True
            for group, timetable in self._timetables:
                self._sort_in(group, timetable.rows)

    @property
    def _timetables(self) -> list[tuple[Group, Timetable]]:
        return [*self._known.items(), *self._added.items()]

    def _sort_in(self, group: Group, rows: Iterable[Evictable]) -> None:
        """Those of them that may be told to leave now."""
        now, nodes, classes = self._now, self._nodes, self._classes
        kinds: dict[int, int] = {}
        for run, held, when in rows:
            if when[0] > now:
                continue
            last = len(when) - 1
            at = bisect_right(when, now, 1, last) - 1
            past = (2 << at) - 1 | (when[last] <= now) << last
            kind = kinds.get(past)
            if kind is None:
                kind = kinds[past] = 1 << classes.setdefault((*group, past), len(classes))
            victim = Victim(run, held, cost(run, now), (-at, run.attained(now)))
            for i, workers in held:
                if i in nodes:
                    nodes[i].append((kind, (victim, workers)))
                else:
                    nodes[i] = [(kind, (victim, workers))]

    def __iter__(self) -> Iterator[Victim]:
        rows = (row for _, timetable in self._timetables for row in timetable.rows if row.run.job.id not in self._gone)
        return (Victim(run, held, cost(run, self._now)) for run, held, _ in rows)

    def open_to(self, claim: Claim, tenants: Mapping[str, Footing]) -> int:
        """The classes that the claim is good against now."""
        if not any(timetable.any_at(ground, self._now) for timetable, ground in self._grounds(claim, tenants)):
            return 0
        self._arrange()
        found = 0
        for (priority, tenant, past), number in self._classes.items():
            good = grounds(claim, priority, tenant, tenants.get(tenant, ALONE), self._policy)
            if any(past >> ground & 1 for ground in good):
                found |= 1 << number
        return found

    def of(self, classes: int) -> list[Victim]:
        """Those that may leave now."""
        self._arrange()
        found = {victim.run.job.id: victim for i in self._nodes for victim, _ in self._held(i, classes)}
        return list(found.values())

    def on_one(self, grid: Grid, demand: Demand, among: int, classes: int) -> tuple[int, list[Victim]] | None:
        """(node, who leaves it) for a gang that stays on one. `grid`: the same in all calls, and `touched` is told of each change."""
        self._arrange()
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
        times_s = (timetable.next_at(ground, self._now) for timetable, ground in self._grounds(claim, tenants))
        return min(times_s, default=math.inf)

    def _grounds(self, claim: Claim, tenants: Mapping[str, Footing]) -> Iterator[tuple[Timetable, int]]:
        """Which of their times make the claim good against the runs of a timetable."""
        for (priority, tenant), timetable in self._timetables:
            for ground in grounds(claim, priority, tenant, tenants.get(tenant, ALONE), self._policy):
                yield timetable, ground

    def _held(self, i: int, classes: int) -> list[Held]:
        return [held for kind, held in self._nodes[i] if kind & classes and held[0].run.job.id not in self._gone]
