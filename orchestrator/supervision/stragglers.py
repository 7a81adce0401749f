"""Which ranks take longer to compute than the others, and have for a while. Pure.

In a window of steps a rank is slow if it takes `factor` times what the others take, if the difference is a part of the step that is worth
a word, and if it lies outside of what ranks differ by anyway: by the robust z-score (x - median) / (1.4826 MAD) over the ranks (Iglewicz
and Hoaglin 1993). The median of two ranks says nothing, so one of two must also be slower than it was itself. A straggler is slow
in all of several windows in a row, so one slow step, or one slow window, never blames.
"""

from __future__ import annotations

import statistics
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

SCALE = 1.4826
"""From the median absolute deviation to a standard deviation, of normal values."""
FLOOR = 0.03
"""Of the median: a deviation is taken as so much at least, since ranks may differ by nothing."""
LEAST_Z = 5.0
LEAST_SHARE = 0.05
"""Of the step, that a straggler must hold it up by."""
LEAST_WINDOWS = 3
LEAST_S = 10.0
"""Time in which a rank must be slow all along, where steps are short."""


@dataclass(frozen=True, kw_only=True)
class Window:
    steps: int
    seconds: tuple[float, ...]
    """By rank: what it takes for its own part of a step, without waiting for others."""
    step_s: float
    """What a step takes as a whole."""
    time_s: float
    """When the window ended."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """A rank has become a straggler, or is none any more."""

    rank: int
    is_slow: bool
    ratio: float
    """Its time to the median of the others'."""
    steps: int
    """Over which that was seen."""


@dataclass(frozen=True)
class _Heard:
    window: Window
    others: Mapping[int, float]
    """Rank -> the median of its peers without it."""
    slow: frozenset[int]


class Stragglers:
    def __init__(self, peers: Sequence[Sequence[int]], factor: float, steps: int) -> None:
        """`peers`: the ranks that have the same work to do. `factor`: 0: none is a straggler."""
        self._peers = [tuple(ranks) for ranks in peers if len(ranks) > 1]
        self._factor = factor
        self._steps = steps
        self._stretch: deque[_Heard] = deque()
        """The newest windows."""
        self._best: dict[int, float] = {}
        """What a rank of a pair took in its best stretch."""
        self._named: set[int] = set()

    def hear(self, window: Window) -> list[Finding]:
        """What is new with this window."""
        if not self._factor:
            return []
        others = {rank: median for peers in self._peers for rank, median in medians_of_others(window.seconds, peers)}
        self._stretch.append(_Heard(window, others, frozenset(self._slow(window, others))))
        while self._is_long(list(self._stretch)[1:]):
            self._stretch.popleft()
        if not self._is_long(list(self._stretch)):
            return []
        found = [self._found(rank) for peers in self._peers for rank in peers]
        self._remember()
        return [finding for finding in found if finding is not None]

    def _is_long(self, stretch: Sequence[_Heard]) -> bool:
        if len(stretch) < LEAST_WINDOWS or sum(heard.window.steps for heard in stretch) < self._steps:
            return False
        first, last = stretch[0].window, stretch[-1].window
        return last.time_s - first.time_s + first.steps * first.step_s >= LEAST_S

    def _slow(self, window: Window, others: Mapping[int, float]) -> Iterator[int]:
        for peers in self._peers:
            values = [window.seconds[rank] for rank in peers]
            median = statistics.median(values)
            deviation = SCALE * statistics.median(abs(value - median) for value in values)
            bound = median + LEAST_Z * max(deviation, FLOOR * median)
            for rank in peers:
                mine = window.seconds[rank]
                if mine <= median:
                    continue
                if mine - others[rank] < LEAST_SHARE * window.step_s or mine < self._factor * others[rank]:
                    continue
                if mine > bound if len(peers) > 2 else mine >= self._factor * self._best.get(rank, mine):
                    yield rank

    def _found(self, rank: int) -> Finding | None:
        slow = [rank in heard.slow for heard in self._stretch]
        if (rank in self._named and any(slow)) or (rank not in self._named and not all(slow)):
            return None
        self._named ^= {rank}
        mine = statistics.median(heard.window.seconds[rank] for heard in self._stretch)
        others = statistics.median(heard.others[rank] for heard in self._stretch)
        steps = sum(heard.window.steps for heard in self._stretch)
        return Finding(rank=rank, is_slow=rank in self._named, ratio=mine / max(others, 1e-9), steps=steps)

    def _remember(self) -> None:
        for rank in (rank for peers in self._peers if len(peers) == 2 for rank in peers):
            mine = statistics.median(heard.window.seconds[rank] for heard in self._stretch)
            self._best[rank] = min(mine, self._best.get(rank, mine))


def medians_of_others(seconds: Sequence[float], peers: Sequence[int]) -> Iterator[tuple[int, float]]:
    """(rank, median of its peers without it), two peers at least. Sorted once: each median anew would take the square of their number."""
    order = sorted(peers, key=lambda rank: seconds[rank])
    middle = (len(order) - 2) // 2, (len(order) - 1) // 2
    for place, rank in enumerate(order):
        yield rank, statistics.median(seconds[order[at + (at >= place)]] for at in middle)
