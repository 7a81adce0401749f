"""The controller: the only one that moves a job between states. `orchestrator.control.serve` is its process.

Its loop observes (store, cluster, supervisors), plans (pure) and applies; nothing in it waits. All it knows can be found again
from the store and from Ray, so that it may die at any moment.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from concurrent.futures import Future

from orchestrator.control import scheduler
from orchestrator.control.client import CLUSTER
from orchestrator.control.closing import finish
from orchestrator.control.groups import WorkerGroups
from orchestrator.control.life import Life, Losses, Phase
from orchestrator.control.provisioning import Provisioner, ScriptedAutoscaler, asked_since
from orchestrator.control.reputation import MEMORY_S, judged, scores
from orchestrator.control.scheduler import ClusterView, Demand, Plan, Policy, Run, Usage, plan_ahead
from orchestrator.control.scheduler.model import Start
from orchestrator.control.store import JobStore
from orchestrator.errors import StaleWrite
from orchestrator.events import Event, EventKind
from orchestrator.job import EndReason, Job, JobResult, JobState
from orchestrator.layout import legal_world_sizes
from orchestrator.paths import Home

VIEW_INTERVAL_S = 1.0
SETTLE_S = 5.0
"""Without a start before actors are made to stand by: the first steps have the processors for themselves."""
_LIVE = [state for state in JobState if not state.terminal]

log = logging.getLogger("controller")


class Controller:
    """`step(now)` does one round. `view()` starts a look at the cluster's nodes."""

    def __init__(
        self, store: JobStore, home: Home, groups: WorkerGroups, view: Callable[[], Future[ClusterView]],
        provisioner: Provisioner | None = None,
    ) -> None:  # fmt: skip
        self._store = store
        self._provisioner = provisioner or Provisioner(home.node_types, ScriptedAutoscaler())
        self._home = home
        self._groups = groups
        self._look = view
        self._looking: Future[ClusterView] | None = None
        self._looked_s = float("-inf")
        self._cluster: ClusterView | None = None
        self._lives: dict[str, Life] = {}
        self._losses: dict[str, Losses] = {}
        self._settled_s = 0.0
        self._short_since: dict[str, float] = {}
        """Since when nodes have been missing for a job that waits."""
        self.live_jobs = 0
        """Jobs that have not ended, as of the last round."""
        self.seen_s: float | None = None
        """When the cluster's nodes were last read; None: not yet."""

    def step(self, now: float) -> None:
        self._observe_cluster(now)
        jobs = self._store.all(_LIVE)
        self.live_jobs = len(jobs)
        self._forget_ended({job.id for job in jobs})
        if self._cluster is not None:
            jobs = self._cancel_queued(jobs, now)
            self._apply(self._plan(self._cluster, jobs, now), {job.id: job for job in jobs}, now)
        for job in jobs:
            if job.state.active:
                self._advance(job, now)
        self._keep_standby(jobs, now)
        self._provisioner.step(now)

    # observe

    def _observe_cluster(self, now: float) -> None:
        if self._looking is None and now - self._looked_s >= VIEW_INTERVAL_S:
            self._looking, self._looked_s = self._look(), now
        if self._looking is None or not self._looking.done():
            return
        looked, self._looking = self._looking, None
        error = looked.exception()
        if error is not None:
            log.warning("the cluster's nodes cannot be read: %s: %s", type(error).__name__, error)
            return
        self.seen_s = now
        view = self._provisioner.extended(judged(looked.result(), scores(self._store.incidents(now - MEMORY_S), now)))
        if view != self._cluster:
            self._cluster = view
            self._store.set_meta(CLUSTER, self._cluster.to_dict())
            log.info("nodes: %s", [f"{node.id[:8]} {node.cpu_units / 1e4:g} CPUs {node.gpus} GPUs" for node in view.there.nodes])
            suspected = [f"{node.name} {node.standing.name.lower()}" for node in view.there.nodes if node.standing]
            if suspected:
                log.warning("failures of late: %s", suspected)

    def _forget_ended(self, live: set[str]) -> None:
        for job_id in [job_id for job_id in self._losses if job_id not in live]:
            del self._losses[job_id]
        for job_id in [job_id for job_id in self._lives if job_id not in live]:
            del self._lives[job_id]

    def _keep_standby(self, jobs: list[Job], now: float) -> None:
        """Not while a job starts, nor before the first: who starts a cluster has a job for it."""
        if self._cluster is None or not self._cluster.there.usable:
            return
        starting = any(life.phase is Phase.START for life in self._lives.values()) or any(job.state is JobState.STARTING for job in jobs)
        if starting or not self._settled_s:
            self._settled_s = now + SETTLE_S
        if now >= self._settled_s:
            able = [node.id for node in self._cluster.there.usable if not node.gpus and not self._provisioner.scales]
            self._groups.keep_standby(able, jobs)

    # plan

    def _plan(self, cluster: ClusterView, jobs: list[Job], now: float) -> Plan:
        queue = tuple(self._waiting(job) for job in jobs if job.state is JobState.QUEUED)
        running = tuple(self._running(job, now) for job in jobs if job.state.active)
        cluster = self._provisioner.sight(cluster, now)
        decided = plan_ahead(cluster, queue, running, Usage(), now, Policy())
        self._provisioner.heard(decided, cluster, now)
        self._short_since = {job_id: self._short_since.get(job_id, now) for job_id in decided.short}
        return decided

    def _waiting(self, job: Job) -> scheduler.Job:
        return scheduler.Job(
            id=job.id, demand=Demand.of(job.spec.resources), submitted_s=job.submitted_s, queued_s=job.queued_s,
            preemptions=job.progress.preemptions,
            smaller=legal_world_sizes(job.spec)[:-1] if job.spec.resources.min_workers else (),
            shrink_after_s=job.spec.recovery.shrink_after_s, short_since_s=self._short_since.get(job.id),
        )  # fmt: skip

    def _running(self, job: Job, now: float) -> Run:
        life, is_short = self._lives.get(job.id), job.num_placed < job.spec.resources.num_workers
        return Run(
            job=self._waiting(job), placement=job.placement, started_s=now if job.started_s is None else job.started_s,
            may_grow=life is not None and is_short and life.may_grow(job, now), growing=life is not None and life.growing,
        )  # fmt: skip

    # apply

    def _cancel_queued(self, jobs: list[Job], now: float) -> list[Job]:
        stopped = [job for job in jobs if job.state is JobState.QUEUED and job.stop_requested]
        for job in stopped:
            committed = job.progress.committed_step
            end = JobResult(
                end_reason=EndReason.CANCELLED, message="cancelled while it waited", step=job.progress.step,
                committed_step=committed, resumable=committed is not None,
            )  # fmt: skip
            self._guarded(job, lambda job=job, end=end: self._finished(finish(self._store, job, end, now)))  # type: ignore[misc]
        return [job for job in jobs if job not in stopped]

    def _apply(self, decided: Plan, jobs: dict[str, Job], now: float) -> None:
        for start in decided.starts:
            self._guarded(jobs[start.job_id], lambda start=start: self._admit(jobs[start.job_id], start, now))  # type: ignore[misc]
        for preempt in decided.preempts:
            if preempt.job_id in self._lives:  # else found again in this round, and preempted in the next
                self._lives[preempt.job_id].preempt(jobs[preempt.job_id], preempt.why, None, now)
        for resize in decided.resizes:
            self._lives[resize.job_id].resize(jobs[resize.job_id], f"all {resize.workers} workers have a place again", now)
        asked = {ask.job_id for ask in decided.asks}
        for job_id, reason in decided.reasons.items():
            if jobs[job_id].reason != reason:
                told = jobs[job_id], reason, job_id in asked, now
                self._guarded(jobs[job_id], lambda told=told: self._explain(*told))  # type: ignore[misc]

    def _admit(self, job: Job, start: Start, now: float) -> None:
        where = ", ".join(f"{workers} on {node[:8]}" for node, workers in start.placement)
        events = [Event(kind=EventKind.ADMITTED, job_id=job.id, time_s=now, message=f"workers: {where}")]
        if start.warning:
            events.append(Event(kind=EventKind.WARNING, job_id=job.id, time_s=now, message=start.warning))
        given, asked = sum(workers for _, workers in start.placement), job.spec.resources.num_workers
        if given < asked:
            message = f"{given} of {asked} workers, because nodes are missing"
            events.append(Event(kind=EventKind.RESIZED, job_id=job.id, time_s=now, message=message, fields={"workers": given}))
        standby = self._groups.take_standby(job, start.placement)
        try:
            self._store.update(
                job, events, state=JobState.STARTING, placement=start.placement, standby=standby, started_s=now, reason=start.warning
            )  # fmt: skip
        except StaleWrite:
            self._groups.return_standby(start.placement, standby)
            raise
        self._lives[job.id] = self._new_life(job, Phase.START, now)
        log.info("%s admitted: %s", job.id, where)

    def _explain(self, job: Job, reason: str, is_asked: bool, now: float) -> None:
        event = Event(kind=EventKind.WAITING, job_id=job.id, time_s=now, message=reason)
        progress = asked_since(job.progress, max(job.queued_s, job.progress.waits_since_s), is_asked, now)
        self._store.update(job, [event], reason=reason, progress=progress)
        log.info("%s waits: %s", job.id, reason)

    def _advance(self, job: Job, now: float) -> None:
        life = self._lives.setdefault(job.id, self._new_life(job, Phase.FIND, now))
        life.gone_nodes = self._gone_nodes(job)
        self._preempt_drained(job, now)
        self._guarded(job, lambda: self._moved(job, life.advance(job, now)))

    def _gone_nodes(self, job: Job) -> list[str]:
        """Those of its place that Ray does not know as living any more. They were there when the place was chosen."""
        known = {node.id for node in self._cluster.nodes} if self._cluster is not None else None
        return [node_id for node_id, _ in job.placement if known is not None and node_id not in known]

    def _preempt_drained(self, job: Job, now: float) -> None:
        """Ray is going to take a node of the job's: the earliest deadline counts."""
        if self._cluster is None:
            return
        held = {node_id for node_id, _ in job.placement}
        draining = [node for node in self._cluster.nodes if node.draining and node.id in held]
        if draining:
            first = min(draining, key=lambda node: (node.drain_deadline_s is None, node.drain_deadline_s, node.id))
            why = f"Ray drains node {first.id[:8]}"
            self._lives[job.id].preempt(job, why, first.drain_deadline_s, now)

    def _moved(self, old: Job, new: Job) -> None:
        if new.state is not old.state:
            log.info("%s: %s -> %s %s", new.id, old.state.value, new.state.value, new.reason)
        if not new.state.active:
            self._lives.pop(new.id, None)
        if new.state.terminal:
            self._finished(new)

    def _finished(self, job: Job) -> None:
        self._home.secrets(job.id).unlink(missing_ok=True)
        log.info("%s ended: %s, %s", job.id, job.state.value, job.reason)

    def _new_life(self, job: Job, phase: Phase, now: float) -> Life:
        losses = self._losses.setdefault(job.id, Losses())
        return Life(store=self._store, groups=self._groups, phase=phase, losses=losses, began_s=now)

    @staticmethod
    def _guarded(job: Job, act: Callable[[], None]) -> None:
        """A row that a client changed meanwhile is read again in the next round."""
        try:
            act()
        except StaleWrite as stale:
            log.info("%s: %s", job.id, stale)
