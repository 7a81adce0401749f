"""Whom a job that comes before may evict, from when on, and what that costs. Pure; `clearing` finds the cheapest set.

A run may be told to leave only past its minimum run time, which doubles with every preemption of its job, and only for a job that comes
before it by more than chance: one that is starved, of a higher priority, of a tenant that holds less than its share while the run's holds
more, or of a lower level of attained service. Expected run times alone are never a cause: two jobs of one level do not evict each other.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

from orchestrator.control.scheduler.model import Policy, Run
from orchestrator.control.scheduler.place import Place


@dataclass(frozen=True, slots=True)
class Claim:
    """What a job that waits may evict others by. Jobs with equal claims may evict the same runs."""

    starved: bool
    priority: int
    tenant: str
    level: int
    within_share: bool = True
    """Its tenant would hold no more than its share with the job."""
    rank: int = 0
    """Of its tenant."""
    in_turn: bool = False
    """It has run before: if it is starved, it takes its turn after that of a run."""


Footing = tuple[bool, int]
"""(whether a tenant holds more than its share, its rank)."""
ALONE: Footing = (False, 0)


class Victim(NamedTuple):
    """A run that might be told to leave."""

    run: Run
    place: Place
    cost: float
    """Service that would be lost."""
    rank: tuple[int, float] = (0, 0.0)
    """Of equal costs the lower leaves: the higher level and, of one level, who has had less of it and so is farther from its end."""

    @property
    def key(self) -> tuple[float, tuple[int, float], str]:
        return self.cost, self.rank, self.run.job.id


Held = tuple[Victim, int]
"""(run, its workers on a node)."""


def protected_until(run: Run, policy: Policy) -> float:
    """Before that, the run is left alone; infinite: always."""
    job = run.job
    if not job.preemptible or run.leaving or run.growing or job.preemptions >= policy.max_preemptions:
        return math.inf
    until = run.started_s + policy.min_run_s * 2 ** min(job.preemptions, policy.max_doublings)
    if job.waited_s >= policy.max_total_wait_s:
        until = max(until, run.started_s + job.waited_s - job.ran_s + policy.min_run_s)  # else it would be starved again at once
    return until


Times = tuple[float, ...]
"""Of a run: when it is no longer left alone, when it has had the service of the first level, the second ..., and when it has had a turn."""
ANYBODY = 0


def times(run: Run, policy: Policy) -> Times:
    """The first is the earliest; infinite: it is left alone for ever."""
    until = protected_until(run, policy)
    leaves = [run.started_s + (bound - run.job.attained) / run.width for bound in policy.levels]
    return (until, *(max(until, time) for time in (*leaves, run.started_s + policy.turn_s)))


def cost(run: Run, now: float) -> float:
    """Service that is lost if the run leaves now: since its last durable checkpoint, and by its save and its next start."""
    saved_s = run.started_s if run.saved_s is None else run.saved_s
    return run.width * (max(0.0, now - saved_s) + run.save_s + run.restart_s)


def grounds(claim: Claim, priority: int, tenant: str, footing: Footing, policy: Policy) -> tuple[int, ...]:
    """Which of its `Times` make the claim good against a run, each of them; none: it never is. `footing`: of the run's tenant.

    It is good only if the job will still come before the run when that waits, so that nobody leaves in vain, or in a circle. A job that is
    starved though it has run before takes its turn after that of the run: where many are, they would else evict each other all the time.
    """
    if (claim.starved and not claim.in_turn) or claim.priority > priority:
        return (ANYBODY,)
    found = (len(policy.levels) + 1,) if claim.starved else ()
    over_share, rank = footing
    if claim.priority < priority or (not claim.within_share and (claim.tenant != tenant or not over_share)):
        return found
    if claim.tenant != tenant:
        if over_share:
            return (ANYBODY,)
        if claim.rank >= rank:
            return found
    return (*found, claim.level + 1) if claim.level < len(policy.levels) else found


def evictable_from(claim: Claim, victim: Victim, policy: Policy, footing: Footing) -> float:
    """From when the claim is good against the run; infinite: never."""
    job, when = victim.run.job, times(victim.run, policy)
    return min((when[ground] for ground in grounds(claim, job.priority, job.tenant, footing, policy)), default=math.inf)
