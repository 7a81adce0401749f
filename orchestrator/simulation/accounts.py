"""What the planner may know of the past: decayed usage by tenant, and the run times of the jobs that have ended."""

from __future__ import annotations

import math

from orchestrator.control.scheduler.estimate import History, remember
from orchestrator.control.scheduler.model import Job, Usage

UNSUCCESSFUL = {"failed", "killed", "cancelled", "canceled", "timeout", "node_fail", "out_of_memory"}
"""What traces call jobs that did not succeed, in small letters."""


class Accounts:
    """Service decays exponentially: d charged / dt = width in use - ln 2 / half-life x charged."""

    def __init__(self, half_life_s: float) -> None:
        self._decay = math.log(2) / half_life_s
        self._tenants: dict[str, tuple[float, float, int]] = {}  # charged, as of when, width in use since
        self._history: History = {}

    def use(self, tenant: str, width: int, now: float) -> None:
        """From `now` on `tenant` has `width` more in use (less, if negative)."""
        charged, since, used = self._tenants.get(tenant, (0.0, now, 0))
        self._tenants[tenant] = (self._charged(charged, used, now - since), now, used + width)

    def ended(self, job: Job, status: str) -> None:
        if status.lower() not in UNSUCCESSFUL:
            self._history = remember(self._history, job.tenant, job.demand.width, job.ran_s)

    def usage(self, now: float) -> Usage:
        charged = {name: self._charged(charged, used, now - since) for name, (charged, since, used) in self._tenants.items()}
        return Usage(charged=charged, charged_at_s=now, history=self._history)

    def _charged(self, charged: float, used: int, elapsed_s: float) -> float:
        lost = -math.expm1(-self._decay * elapsed_s)
        return charged * (1 - lost) + used * lost / self._decay
