"""What a tenant and a user may have at once, and what a tenant's fair share is. Pure but for `Accounts`, which a plan works on."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from itertools import pairwise

from orchestrator.control.scheduler import reasons as why
from orchestrator.control.scheduler.model import Job, Policy, Run, Tenant, Usage

_UNNAMED = Tenant()


class Tally:
    """What some runs hold together, by tenant and user."""

    def __init__(self, running: Iterable[Run] = ()) -> None:
        self.runs: Counter[str] = Counter()
        """By tenant; so are the widths: of all, and of those that are leaving."""
        self.width: Counter[str] = Counter()
        self.leaving: Counter[str] = Counter()
        self.jobs: Counter[tuple[str, str]] = Counter()
        """By tenant and user."""
        for run in running:
            self.count(run, 1)

    def count(self, run: Run, sign: int) -> None:
        """1: it is there now; -1: not any more."""
        tenant, user, width = run.job.tenant, (run.job.tenant, run.job.user), sign * run.width
        self.runs[tenant] += sign
        self.width[tenant] += width
        self.jobs[user] += sign
        if run.leaving:
            self.leaving[tenant] += width
        if not self.jobs[user]:
            del self.jobs[user]
        if not self.runs[tenant]:
            del self.runs[tenant], self.width[tenant], self.leaving[tenant]


class Accounts:
    """What each tenant holds, in widths, and how many jobs each user runs."""

    def __init__(self, policy: Policy, running: Tally) -> None:
        self._policy = policy
        self.charged = dict(running.width)
        """With those that are leaving: for that tenants are charged."""
        self.held = {tenant: width - running.leaving[tenant] for tenant, width in self.charged.items()}
        """Without those that are leaving: by that tenants are compared."""
        self._used, self._jobs = dict(self.charged), dict(running.jobs)

    def start(self, job: Job, width: int) -> None:
        """It holds that from now on."""
        self.charge(job, width)
        self.add(job, width)

    def charge(self, job: Job, width: int) -> None:
        """It holds what it was promised."""
        self.charged[job.tenant] = self.charged.get(job.tenant, 0) + width

    def add(self, job: Job, width: int) -> None:
        """It holds that, or is promised it."""
        self.held[job.tenant] = self.held.get(job.tenant, 0) + width
        self._count(job, width)

    def promise(self, job: Job, width: int) -> None:
        """A place is kept for it: its tenant and its user may not use up in the meantime what it needs to start."""
        self._count(job, width)

    def _count(self, job: Job, width: int) -> None:
        user = job.tenant, job.user
        self._used[job.tenant] = self._used.get(job.tenant, 0) + width
        self._jobs[user] = self._jobs.get(user, 0) + 1

    def grows(self, job: Job, width: int) -> None:
        """It was told to take so much more, which counts for its tenant's quota from then on."""
        self._used[job.tenant] = self._used.get(job.tenant, 0) + width

    def wider(self, job: Job, width: int) -> None:
        """It holds so much more."""
        self.held[job.tenant] += width
        self._used[job.tenant] = self._used.get(job.tenant, 0) + width

    def left(self, job: Job) -> float:
        """Width that its tenant may have beside what it holds."""
        quota = self._policy.tenants.get(job.tenant, _UNNAMED).quota
        return math.inf if quota is None else quota - self._used.get(job.tenant, 0)

    def leaves(self, run: Run) -> None:
        """It was told to."""
        self.held[run.job.tenant] -= run.width

    def refusal(self, job: Job, width: int) -> str:
        """Why it may not start with this width now; empty: it may."""
        tenant = self._policy.tenants.get(job.tenant, _UNNAMED)
        held = self._used.get(job.tenant, 0)
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


def used_by_tenant(policy: Policy, usage: Usage, running: Iterable[Run], names: Iterable[str], now: float) -> dict[str, float]:
    """Service that each tenant has used for its weight, of which half counts after each half-life."""
    kept = 1.0 - _lost(policy, now - usage.charged_at_s)
    used = {name: [usage.charged.get(name, 0.0) * kept] for name in names}
    for run in running:
        since_s = now - max(usage.charged_at_s, run.started_s)
        used[run.job.tenant].append(run.width * _limit_s(policy) * _lost(policy, since_s))
    return {name: math.fsum(parts) / _weight(policy, name) for name, parts in used.items()}


def tenant_ranks(used: Mapping[str, float]) -> dict[str, int]:
    """0 for the tenant that has used the least for its weight, and so on."""
    return {name: rank for rank, name in enumerate(_ordered(used))}


def ranks_change_at(policy: Policy, used: Mapping[str, float], held: Mapping[str, int], now: float) -> float:
    """When the first two tenants change places, if each goes on with what it holds: its use approaches width x half-life / ln 2. To the
    millisecond: two that have used the same are told apart only after a while."""
    limits = {name: held.get(name, 0) * _limit_s(policy) / _weight(policy, name) for name in used}
    meet_s = min((_meet(policy, used[a] - used[b], limits[a] - limits[b]) for a, b in pairwise(_ordered(used))), default=math.inf)
    return now + max(meet_s, 0.001)


def _meet(policy: Policy, gap: float, gap_at_end: float) -> float:
    """In how many seconds a gap, which is not above 0 now, is closed; infinite: never."""
    return policy.usage_half_life_s * math.log2((gap_at_end - gap) / gap_at_end) if gap_at_end > 0.0 else math.inf


def _ordered(used: Mapping[str, float]) -> list[str]:
    return sorted(used, key=lambda name: (used[name], name))


def _lost(policy: Policy, elapsed_s: float) -> float:
    """The part of what was used that does not count any more."""
    return -math.expm1(-math.log(2.0) * max(0.0, elapsed_s) / policy.usage_half_life_s)


def _limit_s(policy: Policy) -> float:
    return policy.usage_half_life_s / math.log(2.0)


def _weight(policy: Policy, name: str) -> float:
    return policy.tenants.get(name, _UNNAMED).weight


def _quota(policy: Policy, name: str, otherwise: int) -> int:
    quota = policy.tenants.get(name, _UNNAMED).quota
    return otherwise if quota is None else quota
