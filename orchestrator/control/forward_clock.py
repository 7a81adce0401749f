"""The time that a controller counts by: the machine's, but for steps back, after which all that is waited for would be far away."""

from __future__ import annotations

import time
from collections.abc import Callable


class ForwardClock:
    """Seconds since 1970. When the machine's clock is set back, it goes on at half its speed until that one has caught up."""

    def __init__(self, wall: Callable[[], float] = time.time, steady: Callable[[], float] = time.monotonic) -> None:
        self._wall, self._steady = wall, steady
        self._now, self._at = wall(), steady()

    def __call__(self) -> float:
        at = self._steady()
        self._now, self._at = max(self._wall(), self._now + (at - self._at) / 2), at
        return self._now
