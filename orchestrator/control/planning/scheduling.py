"""What the scheduler is asked, when, and what of it is remembered: the rows as its inputs, the plan, and the log of both."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence

from orchestrator.control import scheduler
from orchestrator.control.planning.accounts import Accounts
from orchestrator.control.planning.inputs import Facts, Inputs, running, waiting
from orchestrator.control.planning.planlog import PlanLog
from orchestrator.control.planning.policy import ChosenPolicy, chosen_policy
from orchestrator.control.records.store import JobStore
from orchestrator.control.scheduler import ClusterView, Plan, Policy, Run, Usage
from orchestrator.job import Job

Decide = Callable[[ClusterView, tuple[scheduler.Job, ...], tuple[Run, ...], Usage, float, Policy], Plan]

log = logging.getLogger("controller")


class Scheduling:
    """Nothing in it is needed by the next controller: all comes from the store again."""

    def __init__(self, store: JobStore, log_to: PlanLog, decide: Decide = scheduler.plan) -> None:
        self._store, self._log, self._decide = store, log_to, decide
        self._accounts, self._newest_stay = Accounts(), 0
        self._chosen: ChosenPolicy | None = None
        self._queue: dict[str, tuple[Job, Policy, float | None, scheduler.Job]] = {}
        self._runs: dict[str, tuple[Job, Policy, Facts, tuple[Run, ...]]] = {}
        self._short_since: dict[str, float] = {}
        """Since when nodes have been missing for a job that waits."""
        self._inputs: Inputs | None = None
        self._again_s = -math.inf
        """When the same inputs are to be looked at again."""

    def plan(
        self, cluster: ClusterView, queue: Sequence[Job], active: Mapping[str, tuple[Job, Facts]], now: float
    ) -> tuple[Inputs, Plan] | None:
        """What is to be done, and from what that follows; None if it is as it was. `queue`: the jobs that may start."""
        inputs = self._observe(cluster, queue, active, now)
        if inputs == self._inputs and now < self._again_s:
            return None
        decided = self._decide(inputs.cluster, inputs.queue, inputs.running, inputs.usage, now, inputs.policy)
        self._record(inputs, decided, now)
        self._short_since = {job_id: self._short_since.get(job_id, now) for job_id in decided.short}
        self._inputs = inputs
        self._again_s = min(now + inputs.policy.round_s, math.inf if decided.next_change_at is None else decided.next_change_at)
        return inputs, decided

    def look_again(self) -> None:
        """What was decided could not be done."""
        self._inputs = None

    @property
    def policy(self) -> Policy:
        found = chosen_policy(self._store)
        if self._chosen is None or found != self._chosen:
            log.info("policy: %s %s", found.name, dict(found.settings))
            self._chosen = found
        return self._chosen.policy

    def _observe(self, cluster: ClusterView, queue: Sequence[Job], active: Mapping[str, tuple[Job, Facts]], now: float) -> Inputs:
        policy, before = self.policy, self._inputs
        self._runs = {job_id: self._run(job, policy, now, facts) for job_id, (job, facts) in active.items()}
        found = tuple(run for *_, parts in self._runs.values() for run in parts)
        usage = self._usage(found, policy)
        if before is not None and usage == before.usage:
            usage = before.usage
        return Inputs(cluster=cluster, queue=self._waiting(queue, policy), running=found, usage=usage, policy=policy)

    def _usage(self, runs: tuple[Run, ...], policy: Policy) -> Usage:
        for number, stay in self._store.stays(self._newest_stay):
            self._accounts.add(stay)
            self._newest_stay = number
        return self._accounts.usage(runs, policy.usage_half_life_s)

    def _waiting(self, queue: Sequence[Job], policy: Policy) -> tuple[scheduler.Job, ...]:
        found: dict[str, tuple[Job, Policy, float | None, scheduler.Job]] = {}
        for job in queue:
            since_s, known = self._short_since.get(job.id), self._queue.get(job.id)
            if known is None or known[0] is not job or known[1] is not policy or known[2] != since_s:
                new = waiting(job, policy, since_s)
                known = (job, policy, since_s, known[3] if known is not None and known[3] == new else new)
            found[job.id] = known
        self._queue = found
        return tuple(row[3] for row in found.values())

    def _run(self, job: Job, policy: Policy, now: float, facts: Facts) -> tuple[Job, Policy, Facts, tuple[Run, ...]]:
        """With the known ones if they are equal: what plans have derived from them stays."""
        known = self._runs.get(job.id)
        if known is not None and known[0] is job and known[1] is policy and known[2] == facts and job.started_s is not None:
            return known
        new = running(job, policy, now, facts)
        return job, policy, facts, known[3] if known is not None and known[3] == new else new

    def _record(self, inputs: Inputs, decided: Plan, now: float) -> None:
        try:
            found = self._log.record(inputs, now, decided)
        except OSError as error:
            log.warning("a plan could not be recorded: %s", error)
            return
        if found and (decided.starts or decided.preempts or decided.resizes):
            log.info(
                "plan %s: starts %s, preempts %s, resizes %s", found, [start.job_id for start in decided.starts],
                [order.job_id for order in decided.preempts], [order.job_id for order in decided.resizes],
            )  # fmt: skip
