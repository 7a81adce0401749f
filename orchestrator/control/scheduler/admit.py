"""What a tenant and a user may have at once, and what a tenant's fair share is. Pure but for `Accounts`, which a plan works on."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from itertools import pairwise

from orchestrator.control.scheduler import reasons as why
from orchestrator.control.scheduler.model import Job, Policy, Run, Tenant, Usage

_UNNAMED = Tenant()


class Accounts:
    """What each tenant holds, in widths, and how many jobs each user runs."""

    def __init__(self, policy: Policy, running: Iterable[Run]) -> None:
        self._policy = policy
        self.held: dict[str, int] = {}
        self._jobs: dict[tuple[str, str], int] = {}
        for run in running:
            self.add(run.job, run.width)

    def add(self, job: Job, width: int) -> None:
        self.held[job.tenant] = self.held.get(job.tenant, 0) + width
        user = job.tenant, job.user
        self._jobs[user] = self._jobs.get(user, 0) + (1 if width > 0 else -1)

    def refusal(self, job: Job, width: int) -> str:
        """Why it may not start with this width now; empty: it may."""
        tenant = self._policy.tenants.get(job.tenant, _UNNAMED)
        held = self.held.get(job.tenant, 0)
        if tenant.quota is not None and held + width > tenant.quota:
            return why.over_quota(job.tenant, tenant.quota, held, width)
        if tenant.jobs_per_user is not None and self._jobs.get((job.tenant, job.user), 0) >= tenant.jobs_per_user:
            return why.too_many_jobs(job.user, tenant.jobs_per_user)
        return ""


def shares(policy: Policy, total: int, wanted: Mapping[str, int]) -> dict[str, float]:
    """Width that each tenant deserves of `total`: by weight, no more than it wants (what it holds and waits for) or may have; what is left
    over goes to the others, by weight again (water-filling)."""
    limits = {name: float(min(width, _quota(policy, name, width))) for name, width in wanted.items()}
    found: dict[str, float] = {}
    left, open_to = float(total), sorted(limits)
    while open_to:
        unit = left / sum(_weight(policy, name) for name in open_to)
        satisfied = [name for name in open_to if limits[name] <= unit * _weight(policy, name)]
        if not satisfied:
            return found | {name: unit * _weight(policy, name) for name in open_to}
        found |= {name: limits[name] for name in satisfied}
        left -= sum(limits[name] for name in satisfied)
        open_to = [name for name in open_to if name not in found]
    return found


def tenant_ranks(policy: Policy, usage: Usage, held: Mapping[str, int], names: Iterable[str], now: float) -> tuple[dict[str, int], float]:
    """(0 for the tenant that has used the least for its weight, and so on; when the first two of them change places).

    Of what has been used, half counts after each half-life; a tenant that holds a width all the time approaches width x half-life / ln 2.
    """
    fade = 0.5 ** ((now - usage.charged_at_s) / policy.usage_half_life_s)
    used: dict[str, tuple[float, float]] = {}
    for name in names:
        weight = _weight(policy, name)
        limit = held.get(name, 0) * policy.usage_half_life_s / math.log(2.0) / weight
        used[name] = limit + (usage.charged.get(name, 0.0) / weight - limit) * fade, limit
    ordered = sorted(used, key=lambda name: (used[name][0], name))
    flips = [_meet(used[first], used[second], policy.usage_half_life_s) for first, second in pairwise(ordered)]
    return {name: rank for rank, name in enumerate(ordered)}, now + min(flips, default=math.inf)


def _meet(first: tuple[float, float], second: tuple[float, float], half_life_s: float) -> float:
    """In how many seconds the first, which has used less, has used as much; each is given as (used, where it tends to)."""
    (used, limit), (other_used, other_limit) = first, second
    gap, gap_at_end = used - other_used, limit - other_limit
    if gap_at_end <= 0.0:
        return math.inf
    return half_life_s * math.log2((gap_at_end - gap) / gap_at_end)


def _weight(policy: Policy, name: str) -> float:
    return policy.tenants.get(name, _UNNAMED).weight


def _quota(policy: Policy, name: str, otherwise: int) -> int:
    quota = policy.tenants.get(name, _UNNAMED).quota
    return otherwise if quota is None else quota
