"""A place that is kept for a job until it can start there, and what may run there meanwhile. Pure but for `Reservations`, which a plan
works on.

EASY backfilling (Lifka, 1995; Mu'alem and Feitelson, 2001), by node instead of by the number of free processors: the reservation is the
earliest time at which the whole gang has a place, if every run has left by the time that it is expected to. Others may start before it
if they are expected to end by then, or where its place is left to it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from orchestrator.control.scheduler.model import Demand
from orchestrator.control.scheduler.place import Grid, Place, place

Release = tuple[float, Demand, Place]
"""(when, what is free then): a run that leaves."""


def earliest(grid: Grid, demand: Demand, among: int, releases: Sequence[Release]) -> tuple[float, Place] | None:
    """(when, where) the gang has a place; None if not even after all releases (in order of time). `grid` has none for it yet."""
    low, high = 0, len(releases)
    found = place(_after(grid, releases, high), demand, among)
    if found is None:
        return None
    while high - low > 1:
        middle = (low + high) // 2
        here = place(_after(grid, releases, middle), demand, among)
        low, high, found = (middle, high, found) if here is None else (low, middle, here)
    return releases[high - 1][0], found


def _after(grid: Grid, releases: Sequence[Release], count: int) -> Grid:
    later = grid.copy()
    for _, demand, released in releases[:count]:
        later.give(demand, released)
    return later


class Reservations:
    """The places that are kept, and what is left for others."""

    def __init__(self, grid: Grid) -> None:
        """`grid`: what is free now, which the plan takes from."""
        self._grid = grid
        self._kept: list[tuple[float, Demand, Place]] = []
        self._later: list[Grid] = []
        """What is free at the time of each reservation beside all that is kept."""
        self._beside = grid
        """What may be taken for any time."""
        self.first_s = math.inf
        self.nodes = 0
        """Where something is kept."""

    def __len__(self) -> int:
        return len(self._kept)

    def reserve(self, demand: Demand, among: int, soon: Grid, releases: Sequence[Release]) -> tuple[float, Place] | None:
        """(when, where) a gang has its earliest place, which is kept from now on. None: it has none.

        `soon`: what is free when all who are told to leave have left; `releases`: the other runs, in order of time."""
        ledger = soon.copy()
        for _, other, place_kept in self._kept:
            ledger.take(other, place_kept)
        found = earliest(ledger, demand, among, releases)
        if found is None:
            return None
        start_s, chosen = found
        later = _after(ledger, releases, sum(1 for time_s, *_ in releases if time_s <= start_s))
        later.take(demand, chosen)
        self._kept.append((start_s, demand, chosen))
        self._later.append(later)
        self.first_s = min(self.first_s, start_s)
        for i, _ in chosen:
            self.nodes |= 1 << i
        self._beside = self._grid.copy()
        self._narrow(tuple((i, 0) for i in range(len(ledger.gpus))))
        return found

    def place(self, demand: Demand, among: int, ends_s: float) -> Place | None:
        """A place for a gang that is expected to have left by `ends_s`."""
        found = place(self._beside, demand, among)
        if found is None and self._kept and ends_s <= self.first_s:
            found = place(self._grid, demand, among)
        return found

    def take(self, demand: Demand, taken: Place, ends_s: float) -> None:
        """Someone has been given that, and is expected to have left by `ends_s`. Call after the grid has changed."""
        for (start_s, *_), later in zip(self._kept, self._later, strict=True):
            if ends_s > start_s:
                later.take(demand, taken)
        self._narrow(taken)

    def _narrow(self, nodes: Place) -> None:
        if self._kept:
            self._beside.narrow(self._grid, nodes)
            for later in self._later:
                self._beside.narrow(later, nodes)
