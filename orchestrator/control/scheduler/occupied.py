"""What runs hold, kept from plan to plan: a plan touches the runs that have come and gone, not all. It follows from the runs alone."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from orchestrator.control.scheduler.admit import Tally
from orchestrator.control.scheduler.model import ClusterView, Policy, Run
from orchestrator.control.scheduler.place import Grid, Place
from orchestrator.control.scheduler.preempt import times
from orchestrator.control.scheduler.timetable import Evictable, Timetable

Row = tuple[Run, Place]
"""(run, what of its place is on nodes that are there)."""
Group = tuple[int, str]
"""(priority, tenant)."""


class Occupied:
    """Of one cluster, of one set of runs after the other."""

    def __init__(self, cluster: ClusterView) -> None:
        if "empty" not in cluster.memo:
            cluster.memo["empty"] = Grid(cluster)
        self.grid: Grid = cluster.memo["empty"].copy()
        """What is free. Not to be changed."""
        self.tally = Tally()
        """So is this not."""
        self._running: Sequence[Run] = ()
        self._rows: dict[int, Row] = {}
        """By the identity of the run: one that changes is another one."""
        self._leaving: dict[int, Row] = {}
        self._growing: dict[int, Row] = {}
        self._elastic: dict[int, Row] = {}
        self._policy: Policy | None = None
        self._evictable: dict[Group, Timetable] = {}

    def follow(self, running: Sequence[Run]) -> None:
        """Be those runs."""
        if running is self._running:
            return
        self._running = running
        rows, leaving = self._rows, self._leaving
        come = [run for run in running if id(run) not in rows and id(run) not in leaving]
        if len(rows) + len(leaving) + len(come) > len(running):
            there = set(map(id, running))
            for key in [key for known in (rows, leaving) for key in known if key not in there]:
                self._forget(key)
        for run in come:
            key = id(run)
            row = run, self.grid.indexed(run.placement)
            self.grid.take(run.job.demand, row[1])
            self.tally.count(run, 1)
            if run.leaving:
                leaving[key] = row
                continue
            rows[key] = row
            if run.growing:
                self._growing[key] = row
            if run.job.smaller:
                self._elastic[key] = row
            self._note(key, row)

    def _forget(self, key: int) -> None:
        run, held = self._leaving.pop(key) if key in self._leaving else self._rows.pop(key)
        self._growing.pop(key, None)
        self._elastic.pop(key, None)
        self.grid.give(run.job.demand, held)
        self.tally.count(run, -1)
        if (timetable := self._evictable.get(_group(run))) is not None:
            timetable.remove(key)

    def evictable(self, policy: Policy) -> Mapping[Group, Timetable]:
        """The runs that may be told to leave at some time. Not to be changed."""
        if policy is not self._policy:
            self._policy = policy
            self._evictable.clear()
            for key, row in self._rows.items():
                self._note(key, row)
        return self._evictable

    def _note(self, key: int, row: Row) -> None:
        if self._policy is not None and row[1]:
            when = times(row[0], self._policy)
            if when[0] < math.inf:
                self._evictable.setdefault(_group(row[0]), Timetable()).add(key, Evictable(*row, when))

    @property
    def runs(self) -> list[Row]:
        """Those that were not told to leave, in no order; so are the others."""
        return list(self._rows.values())

    @property
    def leaving(self) -> list[Row]:
        return list(self._leaving.values())

    @property
    def growing(self) -> list[Row]:
        """Those that were told to leave for a larger place."""
        return list(self._growing.values())

    @property
    def elastic(self) -> list[Row]:
        """Those that may shrink."""
        return list(self._elastic.values())


def _group(run: Run) -> Group:
    return run.job.priority, run.job.tenant


def occupied(cluster: ClusterView, running: Sequence[Run]) -> Occupied:
    if "occupied" not in cluster.memo:
        cluster.memo["occupied"] = Occupied(cluster)
    found: Occupied = cluster.memo["occupied"]
    found.follow(running)
    return found
