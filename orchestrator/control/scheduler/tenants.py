"""How tenants stand to each other while one plan is made: what each has used and deserves, and so whom its jobs may ask to leave."""

from __future__ import annotations

import math
from collections.abc import Iterable

from orchestrator.control.scheduler.admit import Accounts, ranks_change_at, shares, tenant_ranks, used_by_tenant
from orchestrator.control.scheduler.line import Block
from orchestrator.control.scheduler.model import ClusterView, Job, Policy, Run, Usage
from orchestrator.control.scheduler.order import level
from orchestrator.control.scheduler.preempt import Claim, Footing


class Tenants:
    """Of those that wait and those that run. A single one has no rank and no share, and first in, first out nobody has."""

    def __init__(
        self, accounts: Accounts, blocks: Iterable[Block], cluster: ClusterView, running: Iterable[Run], usage: Usage, now: float,
        policy: Policy,
    ) -> None:  # fmt: skip
        """`accounts`: the plan's, as they are at each question."""
        self._accounts, self._now, self._policy = accounts, now, policy
        self._used: dict[str, float] = {}
        self.ranks: dict[str, int] = {}
        self._shares: dict[str, float] = {}
        wanted = dict(accounts.charged)
        for block in blocks:
            for job, count in ((block.jobs[0], len(block.jobs)),) if block.alike else ((job, 1) for job in block.jobs):
                wanted[job.tenant] = wanted.get(job.tenant, 0) + count * job.demand.width
        if len(wanted) > 1 and policy.mode != "fifo":
            self._used = used_by_tenant(policy, usage, running, wanted, now)
            self.ranks = tenant_ranks(self._used)
            self._shares = shares(policy, sum(node.gpus for node in cluster.usable), wanted)

    @property
    def are_several(self) -> bool:
        return bool(self._shares)

    def stays_within_share(self, job: Job, promised: bool = False) -> bool:
        """Whether its tenant would hold no more than its share with it. `promised`: it is counted already."""
        more = 0 if promised else job.demand.width
        return not self._shares or self._accounts.held.get(job.tenant, 0) + more <= self._shares[job.tenant]

    def claim(self, job: Job, starved: bool) -> Claim:
        rank, service = self.ranks.get(job.tenant, 0), level(job.attained, self._policy)
        return Claim(starved, job.priority, job.tenant, service, self.stays_within_share(job), rank, job.ran_s > 0.0)

    def footings(self) -> dict[str, Footing]:
        held = self._accounts.held
        return {name: (held.get(name, 0) > share, self.ranks[name]) for name, share in self._shares.items()}

    def change_at(self) -> float:
        """When two of them change places. Infinite: never."""
        return ranks_change_at(self._policy, self._used, self._accounts.charged, self._now) if self._used else math.inf
