"""A place that is kept for a job until it can start there, and what may run there meanwhile. Pure but for `Reservations`, which a plan
works on.

EASY backfilling (Lifka, 1995; Mu'alem and Feitelson, 2001), by node instead of by the number of free processors: the reservation is the
earliest time at which the whole gang has a place, if every run has left by the time that it is expected to. Others may start before it
if they are expected to end by then, or where its place is left to it.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from operator import itemgetter

from orchestrator.control.scheduler.model import Demand
from orchestrator.control.scheduler.place import Grid, Place, place

Release = tuple[float, Demand, Place]
"""(when, what is free then): a run that leaves."""


def earliest(
    grid: Grid, demand: Demand, among: int, releases: Sequence[Release], soon_s: float = -math.inf, on_one: bool | None = None
) -> tuple[float, Place] | None:
    """(when, where) the gang has a place; None if not even after all releases (in order of time).

    `soon_s`: when `grid` is free; `on_one`: as in `place`.
    """
    low, high, found = -1, 0, place(grid, demand, among, on_one)
    while found is None:  # twice as many releases each time, until there is a place
        if high == len(releases):
            return None
        low, high = high, min(len(releases), 2 * high + 16)
        later = _after(grid, releases[low:high])
        if (found := place(later, demand, among, on_one)) is None:
            grid = later
    while high - low > 1:  # `grid`: after `low` of them
        middle = (low + high) // 2
        later = _after(grid, releases[low:middle])
        here = place(later, demand, among, on_one)
        if here is None:
            low, grid = middle, later
        else:
            high, found = middle, here
    return (releases[high - 1][0] if high else soon_s), found


def _after(grid: Grid, releases: Sequence[Release]) -> Grid:
    later = grid.copy()
    for _, demand, released in releases:
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

    def reserve(
        self, demand: Demand, among: int, on_one: bool, soon: Grid, soon_s: float, releases: Sequence[Release]
    ) -> tuple[float, Place] | None:
        """(when, where) a gang has its earliest place, which is kept from now on. None: it has none.

        `soon`: what is free at `soon_s`, when all who are told to leave have left; `releases`: the other runs, in order of time.
        """
        ledger = soon.copy()
        for _, other, place_kept in self._kept:
            ledger.take(other, place_kept)
        found = earliest(ledger, demand, among, releases, soon_s, on_one)
        if found is None:
            return None
        start_s, chosen = found
        later = _after(ledger, releases[: bisect_right(releases, start_s, key=itemgetter(0))])
        later.take(demand, chosen)
        self._kept.append((start_s, demand, chosen))
        self._later.append(later)
        self.first_s = min(self.first_s, start_s)
        for i, _ in chosen:
            self.nodes |= 1 << i
        self._beside = self._grid.copy()
        self._narrow(tuple((i, 0) for i in range(len(ledger.gpus))))
        return found

    def place(self, demand: Demand, among: int, on_one: bool, ends_s: float) -> Place | None:
        """A place for a gang that is expected to have left by `ends_s`."""
        found = place(self._beside, demand, among, on_one)
        if found is None and self._kept and ends_s <= self.first_s:
            found = place(self._grid, demand, among, on_one)
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
