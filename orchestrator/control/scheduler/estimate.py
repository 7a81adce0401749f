"""How long a job runs, from its user's limit and from what like jobs took. Pure.

An estimate is a step function of the time that the job has run: an estimate that was overrun doubles (half of the jobs that have run for t
run for another t: the run times of training jobs are heavy-tailed). So it changes only at times that are known before.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from orchestrator.control.scheduler.model import Job

History = Mapping[tuple[str, int], tuple[float, ...]]
"""Run times, oldest first, by (tenant, width)."""

MEMORY = 20
"""Run times that are kept of each tenant and width."""
NOTHING_KNOWN_S = 3600.0


def remember(history: History, tenant: str, width: int, ran_s: float) -> History:
    """The history with one more job that has succeeded."""
    key = tenant, width
    return {**history, key: (*history.get(key, ()), ran_s)[-MEMORY:]}


class Estimates:
    """Of run times in all, counted from a job's first start, as one history tells them."""

    def __init__(self, history: History) -> None:
        self._history = history
        self._known: dict[tuple[str, int], tuple[float, float]] = {}
        self._pools: dict[str | None, tuple[float, ...]] = {}

    def total_s(self, job: Job) -> tuple[float, float]:
        """(p50, p90) for a job that has not started. Within the user's limit; without one, the p90 is at least twice the median."""
        key = job.tenant, job.demand.width
        found = self._known.get(key)
        if found is None:
            found = self._known[key] = self._of_like_jobs(*key)
        if job.limit_s is None:
            return found
        limit_s = max(1.0, job.limit_s)
        return min(found[0], limit_s), limit_s

    def ends_after_s(self, job: Job, ran_s: float) -> float:
        """The p90 for a job that has run for `ran_s`: always more than that."""
        p90_s = self.total_s(job)[1]
        while p90_s <= ran_s:
            p90_s *= 2.0
        return p90_s

    def ends_s(self, job: Job, began_s: float, now: float) -> float:
        """When, by its p90, a job ends that has run since `began_s`: always later than now, whatever differences are rounded to."""
        p90_s = self.total_s(job)[1]
        while began_s + p90_s <= now:
            p90_s *= 2.0
        return began_s + p90_s

    def _of_like_jobs(self, tenant: str, width: int) -> tuple[float, float]:
        """Of the same tenant and width, else of the same tenant, else of all."""
        times = sorted(self._history.get((tenant, width)) or self._pool(tenant) or self._pool(None))
        if not times:
            return NOTHING_KNOWN_S, 2.0 * NOTHING_KNOWN_S
        p50_s = max(1.0, times[(len(times) - 1) // 2])
        return p50_s, max(2.0 * p50_s, times[(9 * len(times)) // 10])

    def _pool(self, tenant: str | None) -> tuple[float, ...]:
        if tenant not in self._pools:
            groups: Iterable[tuple[float, ...]] = (times for key, times in self._history.items() if tenant in (None, key[0]))
            self._pools[tenant] = tuple(time for times in groups for time in times)
        return self._pools[tenant]
