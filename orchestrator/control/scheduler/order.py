"""Who comes next: starved, then priority, tenant, level of attained service, expected remaining service, time of submission. Pure.

Levels of attained service with few preemptions between them: Gu et al., Tiresias, NSDI 2019. A job that waits keeps its service, so that
its key changes only when it starves, and with the rank of its tenant.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from typing import Any

from orchestrator.control.scheduler.estimate import Estimates
from orchestrator.control.scheduler.model import Job, Policy

Key = tuple[Any, ...]


def starves_at(job: Job, policy: Policy, widest: float = math.inf) -> float:
    """When a job that waits has waited too long: in this wait, or in all its waits together and longer than it ran.

    `widest`: the GPUs of the largest node. A gang that needs more waits less long: jobs that come before it and fit one node take whatever
    becomes free, so that it finds no place by chance.
    """
    bound_s = policy.max_wait_s
    if job.demand.gpus and job.demand.width > widest:
        bound_s = min(bound_s, policy.max_gang_wait_s)
    in_all_s = max(policy.max_total_wait_s, job.ran_s) - job.waited_s
    return job.queued_s + min(bound_s, max(0.0, in_all_s))


def level(service: float, policy: Policy) -> int:
    return bisect_right(policy.levels, service)


def remaining(job: Job, estimates: Estimates) -> float:
    """Expected service to its end, of a job that waits: after the median is over, as much again as it has had."""
    return max(job.demand.width * estimates.total_s(job)[0] - job.attained, job.attained)


def fifo_key(job: Job) -> Key:
    return job.queued_s, job.id


def key(job: Job, starved: bool, policy: Policy, tenant_ranks: Mapping[str, int], estimates: Estimates) -> Key:
    """The smaller, the earlier."""
    if starved:
        return 0, job.queued_s, job.id
    at = bisect_right(policy.levels, job.attained) if job.attained and policy.mode == "preemptive" else 0
    return 1, -job.priority, tenant_ranks.get(job.tenant, 0), at, remaining(job, estimates), job.submitted_s, job.id


def in_order(
    queue: Sequence[Job], now: float, policy: Policy, tenant_ranks: Mapping[str, int], estimates: Estimates, widest: float
) -> tuple[list[Job], set[str], float]:
    """(the jobs, who is next first; the ids of those that are starved; when the next of the others will be)."""
    keys: list[Key] = []
    starved, next_s = set(), math.inf
    for job in queue:
        starves_s = starves_at(job, policy, widest)
        if starves_s <= now:
            starved.add(job.id)
        elif starves_s < next_s:
            next_s = starves_s
        keys.append(key(job, starves_s <= now, policy, tenant_ranks, estimates))
    return [queue[i] for i in sorted(range(len(queue)), key=keys.__getitem__)], starved, next_s
