"""What tenants are charged for and what run times are estimated from: every time that a job held a place. Pure.

Service fades with the half-life of the policy: d charged / dt = width in use - ln 2 / half-life x charged. It is computed from the stays
themselves, which are written with the job's new state in one transaction: none is counted twice, and none is lost.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from orchestrator.control.scheduler.estimate import History, remember
from orchestrator.control.scheduler.model import Run, Usage


@dataclass(frozen=True, kw_only=True)
class Stay:
    """One time that a job held a place; seconds since 1970."""

    job_id: str
    tenant: str
    width: int
    """Of its workers there: their GPUs, or their number on CPUs."""
    asked_width: int
    """Of the whole gang."""
    started_s: float
    ended_s: float
    ran_s: float
    """In all its stays by then."""
    succeeded: bool
    """It ended here, and well."""


MAX_STAYS = 20_000
"""The newest that are kept in mind: older ones count for nothing any more."""


class Accounts:
    def __init__(self, stays: Iterable[Stay] = ()) -> None:
        self._stays: deque[Stay] = deque(maxlen=MAX_STAYS)
        self._history: History = {}
        self._half_life_s = 0.0
        self._charged: dict[str, tuple[float, float]] = {}
        """(what the stays of a tenant come to, as of when)."""
        for stay in stays:
            self.add(stay)

    def add(self, stay: Stay) -> None:
        self._stays.append(stay)
        if stay.succeeded:
            self._history = remember(self._history, stay.tenant, stay.asked_width, stay.ran_s)
        if self._half_life_s:
            self._charge(stay)

    def usage(self, running: Sequence[Run], half_life_s: float) -> Usage:
        """As of the last time that a job was given a place or left it."""
        if half_life_s != self._half_life_s:
            self._half_life_s, self._charged = half_life_s, {}
            for stay in self._stays:
                self._charge(stay)
        ends = [self._stays[-1].ended_s] if self._stays else []
        now = max([*ends, *(at_s for _, at_s in self._charged.values()), *(run.started_s for run in running)], default=0.0)
        charged = {tenant: [value * self._kept(now - at_s)] for tenant, (value, at_s) in self._charged.items()}
        for run in sorted(running, key=lambda run: run.job.id):
            charged.setdefault(run.job.tenant, []).append(run.width * self._grown(now - run.started_s))
        return Usage(charged={name: math.fsum(parts) for name, parts in sorted(charged.items())}, charged_at_s=now, history=self._history)

    def _charge(self, stay: Stay) -> None:
        before, at_s = self._charged.get(stay.tenant, (0.0, stay.ended_s))
        now = max(at_s, stay.ended_s)
        used = stay.width * self._grown(stay.ended_s - stay.started_s) * self._kept(now - stay.ended_s)
        self._charged[stay.tenant] = (before * self._kept(now - at_s) + used, now)

    def _kept(self, elapsed_s: float) -> float:
        return 0.5 ** (max(0.0, elapsed_s) / self._half_life_s)

    def _grown(self, held_s: float) -> float:
        """What a width of 1 comes to that is held for so long."""
        decay = math.log(2.0) / self._half_life_s
        return -math.expm1(-decay * max(0.0, held_s)) / decay
