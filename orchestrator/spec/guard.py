"""What is watched while the numbers are made, and what follows when they go wrong."""

from __future__ import annotations

import enum
import math
from dataclasses import dataclass

from orchestrator.spec.checks import at_least, require

REPLICA_CHECK_STEPS = 50
"""Steps between two looks at the replicas where the user names no number."""


class OnBadNumbers(enum.Enum):
    """What follows a loss or a gradient that is not finite, and a loss that jumps."""

    stop = "stop"  # the job fails
    rewind = "rewind"  # to the newest checkpoint, and once more with the same samples: it may have been the machine
    skip = "skip"  # to the newest checkpoint, and past the samples


@dataclass(frozen=True, kw_only=True)
class GuardSpec:
    on_bad_numbers: OnBadNumbers = OnBadNumbers.rewind
    """Losses and gradient norms are looked at on all ranks at log steps and before each save, so nothing is saved after a bad one."""
    max_skips: int = 3
    """Windows of samples that a job may pass over with `skip`; then it fails."""
    spike_factor: float = 0
    """A loss that lies so many robust standard deviations above the median of the last 100 log steps is a jump; 0: none is. 10 is far."""
    replica_check_steps: int = -1
    """Every so many steps, and before each save, the ranks compare the bits of what each of them holds a whole copy of; 0: never; -1:
    `REPLICA_CHECK_STEPS` where there is such a copy, else never."""

    def __post_init__(self) -> None:
        at_least(0, "guard", self, "max_skips")
        at_least(-1, "guard", self, "replica_check_steps")
        require(0 <= self.spike_factor < math.inf, "guard.spike_factor", self.spike_factor, "0 (never) or more")
