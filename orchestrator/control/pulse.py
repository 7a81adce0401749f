"""Signs of life of the controller's loop, for whoever watches it: written by the loop, read by the API's threads."""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Callable

BOUNDS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""Upper bounds of the buckets of a round's time."""
SILENCE_S = 30.0
"""A loop that has not gone round for so long hangs."""
START_S = 180.0
"""That it may take to join Ray before its first round."""


class Pulse:
    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._beat_s = clock()
        self.ready = False
        """The loop has seen the cluster."""
        self.dashboard = ""
        """Where Ray's dashboard is (host:port); empty: there is none, or Ray is not joined yet."""
        self.counts = [0] * (len(BOUNDS_S) + 1)
        """Rounds by their time: those up to each of BOUNDS_S, and longer ones."""
        self.total_s = 0.0

    def beat(self, took_s: float) -> None:
        """A round is done."""
        self._beat_s = self._clock()
        self.counts[bisect_left(BOUNDS_S, took_s)] += 1
        self.total_s += took_s

    @property
    def silent_s(self) -> float:
        """Since the last round."""
        return self._clock() - self._beat_s

    @property
    def alive(self) -> bool:
        return self.silent_s < (SILENCE_S if any(self.counts) else START_S)
