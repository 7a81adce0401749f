"""Who comes next: starved, then priority, tenant, level of attained service, expected remaining service, time of submission. Pure.

Levels of attained service with few preemptions between them: Gu et al., Tiresias, NSDI 2019. A job that waits keeps its service, so that
its key changes only when it starves, and with the rank of its tenant.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import chain
from operator import attrgetter
from typing import Any

from orchestrator.control.scheduler.estimate import Estimates
from orchestrator.control.scheduler.model import Job, Policy

Key = tuple[Any, ...]
_TURN = attrgetter("turn")


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
    """The jobs that wait, in their order. Those that are alike are put in it together, so that thousands of them take little time."""

    def __init__(
        self, queue: Sequence[Job], now: float, policy: Policy, tenant_ranks: Mapping[str, int], estimates: Estimates, widest: float
    ) -> None:
        self._now, self._policy, self._widest = now, policy, widest
        self._starved: list[Job] = []
        self.next_starves: tuple[float, str] = math.inf, ""
        """(when, who of those that are not yet)."""
        parts: dict[Key, list[list[Job]]] = {}
        self.others = [job for job in queue if not job.alike]
        """Those that are like no other, in no order."""
        for members in _groups(queue):
            if patient := self._patient(members):
                parts.setdefault(key(patient[0], False, policy, tenant_ranks, estimates)[:-2], []).append(patient)
        self.starved = {job.id for job in self._starved}
        self.jobs = sorted(self._starved, key=starved_key)
        """Who is next first."""
        for prefix in sorted(parts):
            jobs, *others = parts[prefix]
            self.jobs += sorted(chain(jobs, *others), key=_TURN) if others else jobs

    def starve_next(self, started: Collection[str]) -> float:
        """When the next of them does, but those that were `started`. Infinite: none will."""
        if self.next_starves[1] in started:
            self.next_starves = math.inf, ""
            for members in _groups([job for job in self.jobs if job.id not in started and job.id not in self.starved]):
                self._patient(members)
        return self.next_starves[0]

    def _patient(self, members: list[Job]) -> list[Job]:
        """Those of alike jobs that are not starved, in their order."""
        waits_s = patience_s(members[0], self._policy, self._widest)
        number = bisect_right(members, self._now, key=lambda job: job.queued_s + waits_s)
        self._starved += members[:number]
        if number < len(members):
            self.next_starves = min(self.next_starves, (members[number].queued_s + waits_s, members[number].id))
        return members[number:]


def _groups(queue: Sequence[Job]) -> Iterator[list[Job]]:
    """The jobs that are alike, in their order."""
    groups: defaultdict[str, list[Job]] = defaultdict(list)
    for job in queue:
        groups[job.alike].append(job)
    yield from ([job] for job in groups.pop("", ()))
    for members in groups.values():
        members.sort(key=_TURN)
        yield members
