"""When a checkpoint is due: every so many steps, or at the interval that loses the least time. And when the ranks ask each other."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

from orchestrator.spec import CheckpointSpec

FIRST_COST_S = 1.0
"""Taken for what a save costs until one has been measured."""
VOTE_INTERVAL_S = 2.0


def least_loss_interval_s(save_cost_s: float, failure_interval_s: float) -> float:
    """sqrt(2 C M): of a save that costs C seconds of training, when failures are M seconds apart.

    Young 1974 (doi:10.1145/361147.361115); Daly 2006 (doi:10.1016/j.future.2004.11.016) gives the terms that follow, small for C << M.
    """
    return math.sqrt(2 * save_cost_s * failure_interval_s)


class Cadence:
    """Of one rank; only one rank's `is_time` is asked, so that all save at the same step."""

    def __init__(self, spec: CheckpointSpec, nodes: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._every = spec.interval_steps
        self._failure_interval_s = spec.node_mtbf_hours * 3600 / nodes
        self._clock = clock
        self._cost_s = FIRST_COST_S
        self._last_s = clock()
        self._stalled_s = 0.0
        self._is_first = True

    def is_step(self, step: int) -> bool:
        """Whether this step is one to save at whatever the time."""
        return self._every > 0 and step % self._every == 0

    def is_time(self) -> bool:
        return self._every == 0 and self._clock() - self._last_s >= self.interval_s

    @property
    def interval_s(self) -> float:
        return least_loss_interval_s(self._cost_s, self._failure_interval_s)

    def saved(self, stalled_s: float) -> None:
        """A save begins; all that came before have held the training up for `stalled_s`."""
        if not self._is_first:
            self._cost_s = max(stalled_s - self._stalled_s, 1e-3)
        self._is_first, self._stalled_s, self._last_s = False, stalled_s, self._clock()


class Ballot:
    """When the ranks ask each other whether one of them was ordered to stop: about every `VOTE_INTERVAL_S`, however long a step takes.

    They must ask at the same step, so rank 0 says at each vote how many steps the next one is away.
    """

    def __init__(self, step: int, clock: Callable[[], float] = time.monotonic) -> None:
        """`step` steps are done; the first vote is after the next one."""
        self._clock = clock
        self._step, self._held_s, self._next = step, clock(), step + 1

    def is_due(self, step: int) -> bool:
        return step >= self._next

    def steps_to_next(self, step: int) -> int:
        """By the pace since the last vote; at least 1."""
        pace_s = (self._clock() - self._held_s) / max(step - self._step, 1)
        return max(1, int(VOTE_INTERVAL_S / max(pace_s, 1e-6)))

    def held(self, step: int, steps: int) -> None:
        """They have voted after `step`, and will again `steps` steps later."""
        self._step, self._held_s, self._next = step, self._clock(), step + steps
