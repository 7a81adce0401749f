"""Whose a job is and when it may run: tenant, priority, time limit, dependencies."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from orchestrator.spec.checks import require

HIGHEST_PRIORITY = 1000
NAME = r"[a-z0-9][a-z0-9._-]{0,39}"


@dataclass(frozen=True, kw_only=True)
class SchedulingSpec:
    tenant: str = ""
    """Who is charged for it and whose quota it counts against (`orchestrator policy`); empty: nobody in particular."""
    priority: int = 0
    """Its class: a higher one comes before all lower ones, and may take their place."""
    time_limit_s: float = 0.0
    """Time that it may hold a place in all, until it ends or is resumed; then it saves and ends. 0: no limit."""
    after: tuple[str, ...] = ()
    """Jobs, by id, that must have succeeded before it starts; it ends with one that does not."""
    preemptible: bool = True
    """It may be told to save and to leave for another job; it goes on later from there."""

    def __post_init__(self) -> None:
        ok = self.tenant == "" or re.fullmatch(NAME, self.tenant) is not None
        require(ok, "scheduling.tenant", self.tenant, "up to 40 of a-z, 0-9, '.', '_' and '-', or empty")
        allowed = f"a whole number from {-HIGHEST_PRIORITY} to {HIGHEST_PRIORITY}"
        require(-HIGHEST_PRIORITY <= self.priority <= HIGHEST_PRIORITY, "scheduling.priority", self.priority, allowed)
        require(0 <= self.time_limit_s < math.inf, "scheduling.time_limit_s", self.time_limit_s, "0 (no limit) or more")
        for job_id in self.after:
            require(bool(job_id.strip()), "scheduling.after", list(self.after), "a list of the ids of jobs, such as [gpt-abc123]")
