"""How long this rank's steps take: what tells a hang from a slow step.

A host runs ahead of its GPU and waits for it where it reads a figure, which is at log steps: such a step may last as long as all since the
one before it. So log steps are looked at by themselves too, and nothing is said before the first.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

WINDOW = 500
"""Steps that are remembered."""
LOG_WINDOW = 100
LEAST = 3
"""Steps before anything is said: the first ones make kernels and connections."""
EVERY = 10


class Pace:
    def __init__(self) -> None:
        self._steps: deque[float] = deque(maxlen=WINDOW)
        self._log_steps: deque[float] = deque(maxlen=LOG_WINDOW)
        self._count = 0

    def add(self, seconds: float, is_log_step: bool) -> float | None:
        """What 99 % of the last steps, and of the last log steps, have taken at most, in seconds, when it is time to say it anew."""
        self._count += 1
        self._steps.append(seconds)
        if is_log_step:
            self._log_steps.append(seconds)
        if self._count < LEAST or not self._log_steps or (self._count > EVERY and self._count % EVERY and not is_log_step):
            return None
        return max(_p99(self._steps), _p99(self._log_steps))


def _p99(seconds: Sequence[float]) -> float:
    """The nearest rank: of fewer than a hundred it is the longest."""
    return sorted(seconds)[-1 - len(seconds) // 100]
