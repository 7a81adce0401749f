"""From when on the runs of a priority and a tenant may be told to leave, kept from plan to plan: a plan asks for the next time of a ground
without a look at every run."""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterable
from typing import NamedTuple

from orchestrator.control.scheduler.model import Run
from orchestrator.control.scheduler.place import Place
from orchestrator.control.scheduler.preempt import Times


class Evictable(NamedTuple):
    """A run that may be told to leave at some time, and when."""

    run: Run
    place: Place
    times: Times


class Timetable:
    """Of runs by any keys."""

    def __init__(self) -> None:
        self._rows: dict[int, Evictable] = {}
        self._times: list[list[float]] = []
        """By the number of the ground, ascending."""

    def add(self, key: int, row: Evictable) -> None:
        self._rows[key] = row
        if not self._times:
            self._times = [[] for _ in row.times]
        for known, time in zip(self._times, row.times, strict=True):
            insort(known, time)

    def remove(self, key: int) -> None:
        """Nothing if it is not there."""
        row = self._rows.pop(key, None)
        if row is not None:
            for known, time in zip(self._times, row.times, strict=True):
                del known[bisect_left(known, time)]

    @property
    def rows(self) -> Iterable[Evictable]:
        return self._rows.values()

    def __len__(self) -> int:
        return len(self._rows)

    def next_at(self, ground: int, now: float) -> float:
        """When the next of them may leave for that reason, after `now`. Infinite: none will."""
        if not self._rows:
            return math.inf
        known = self._times[ground]
        at = bisect_right(known, now)
        return known[at] if at < len(known) else math.inf

    def any_at(self, ground: int, now: float) -> bool:
        """Whether one of them may by then."""
        return bool(self._rows) and self._times[ground][0] <= now
