"""Who comes next: starved, then priority, tenant, level of attained service, expected remaining service, time of submission. Pure.

Levels of attained service with few preemptions between them: Gu et al., Tiresias, NSDI 2019. A job that waits keeps its service, so that
its key changes only when it starves, and with the rank of its tenant.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Collection, Mapping, Sequence
from itertools import chain
from typing import Any

from orchestrator.control.scheduler.estimate import Estimates
from orchestrator.control.scheduler.line import Block, Line, block_of, merged
from orchestrator.control.scheduler.model import Job, Policy

Key = tuple[Any, ...]


def patience_s(job: Job, policy: Policy, widest: float = math.inf) -> float:
    """How long it may wait this time until it has waited too long: in this wait, or in all its waits together and longer than it ran.

    The same for jobs that are `alike`.

    `widest`: the GPUs of the largest node. A gang that needs more waits less long: jobs that come before it and fit one node take whatever
    becomes free, so that it finds no place by chance.
    """
    bound_s = policy.max_wait_s
    if job.demand.gpus and job.demand.width > widest:
        bound_s = min(bound_s, policy.max_gang_wait_s)
    return min(bound_s, max(0.0, max(policy.max_total_wait_s, job.ran_s) - job.waited_s))


def level(service: float, policy: Policy) -> int:
    return bisect_right(policy.levels, service)


def remaining(job: Job, estimates: Estimates) -> float:
    """Expected service to its end, of a job that waits: after the median is over, as much again as it has had."""
    return max(job.demand.width * estimates.total_s(job)[0] - job.attained, job.attained)


def fifo_key(job: Job) -> Key:
    return job.queued_s, job.id


def starved_key(job: Job) -> Key:
    """All are to have their first turn in time: so who has run comes after them."""
    return job.ran_s > 0.0, job.queued_s, job.id


def key(job: Job, starved: bool, policy: Policy, tenant_ranks: Mapping[str, int], estimates: Estimates) -> Key:
    """The smaller, the earlier."""
    if starved:
        return 0, *starved_key(job)
    at = bisect_right(policy.levels, job.attained) if job.attained and policy.mode == "preemptive" else 0
    return 1, -job.priority, tenant_ranks.get(job.tenant, 0), at, remaining(job, estimates), job.submitted_s, job.id


class Turns:
    """The blocks of those that wait, in their order."""

    def __init__(
        self, line: Line, now: float, policy: Policy, tenant_ranks: Mapping[str, int], estimates: Estimates, widest: float
    ) -> None:
        self._patient: list[tuple[float, Block]] = []
        """(how long each of them may wait, those that have not waited so long)."""
        self._started: set[str] = set()
        starved: list[Job] = []
        parts: dict[Key, list[Block]] = {}
        for block in chain(line.blocks, (Block("", [job], [job.id]) for job in line.others)):
            waits_s = patience_s(block.jobs[0], policy, widest)
            number = _number_starved(block.jobs, waits_s, now)
            starved += block.jobs[:number]
            if number < len(block.jobs):
                patient = block.since(number)
                self._patient.append((waits_s, patient))
                parts.setdefault(key(patient.jobs[0], False, policy, tenant_ranks, estimates)[:-2], []).append(patient)
        starved.sort(key=starved_key)
        self.starved = {job.id for job in starved}
        self.blocks = [block_of(starved)] if starved else []
        """Who is next first."""
        self.blocks += [merged(parts[prefix]) for prefix in sorted(parts)]

    def starve_next(self, started: Collection[str]) -> float:
        """When the next of them does, but those that were `started`, now or in a call before. Infinite: none will."""
        self._started.update(started)
        found = math.inf
        for waits_s, block in self._patient:
            first = next((job for job in block.jobs if job.id not in self._started), None)
            if first is not None:
                found = min(found, first.queued_s + waits_s)
        return found


def _number_starved(jobs: Sequence[Job], waits_s: float, now: float) -> int:
    """Of jobs that are alike, in their turn: the first so many."""
    return bisect_right(jobs, now, key=lambda job: job.queued_s + waits_s)
