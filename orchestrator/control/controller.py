"""The controller: the only one that moves a job between states. `orchestrator.control.serve` is its process.

Its loop observes (store, cluster, supervisors), plans (pure) and applies; nothing in it waits. All it knows can be found again
from the store and from Ray, so that it may die at any moment.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import replace

from orchestrator.control.client import CLUSTER
from orchestrator.control.closing import ended, finish, over_limit
from orchestrator.control.life import PROGRESS_INTERVAL_S, Life, Losses, Phase
from orchestrator.control.nodes.groups import WorkerGroups
from orchestrator.control.nodes.provisioning import Provisioner
from orchestrator.control.planning.dependencies import Standing, standing
from orchestrator.control.planning.execution import Execution
from orchestrator.control.planning.inputs import Facts
from orchestrator.control.planning.live import LiveJobs
from orchestrator.control.planning.notices import Notices
from orchestrator.control.planning.planlog import PlanLog
from orchestrator.control.planning.reputation import MEMORY_S, judged, scores
from orchestrator.control.planning.scheduling import Decide, Scheduling
from orchestrator.control.records.store import JobStore
from orchestrator.control.scheduler import ClusterView, plan_ahead
from orchestrator.control.scheduler.model import Node
from orchestrator.control.secrets import Secrets
from orchestrator.control.upkeep import Upkeep
from orchestrator.errors import StaleWrite
from orchestrator.events import Event, EventKind
from orchestrator.job import EndReason, Job, JobResult, JobState
from orchestrator.paths import Home

VIEW_INTERVAL_S = 1.0
SECRETS_STAY_S = 60.0
"""After a job's end: who follows its output reads the last of it with its keys."""
SETTLE_S = 5.0
"""Without a start before actors are made to stand by: the first steps have the processors for themselves."""
SEEK_LIMIT_S = 60.0
"""How long a controller that has just started plans nothing, for jobs that are on their way back to the queue."""
MAX_WRITES_PER_S = 100
"""Of progress, of all jobs together."""
MAX_ASKS_PER_S = 200
"""Of the supervisors' status, of all jobs together: each takes a millisecond here and another one there."""

log = logging.getLogger("controller")


class Controller:
    """`step(now)` does one round. `view()` starts a look at the cluster's nodes."""

    def __init__(
        self, store: JobStore, home: Home, groups: WorkerGroups, view: Callable[[], Future[ClusterView]], provisioner: Provisioner,
        decide: Decide = plan_ahead,
    ) -> None:  # fmt: skip
        self._store = store
        self._provisioner = provisioner
        self._secrets = Secrets(home)
        self._forgets: dict[str, float] = {}
        """When the secrets of which jobs that have ended go."""
        self._groups = groups
        self._look = view
        self._looking: Future[ClusterView] | None = None
        self._looked_s = float("-inf")
        self._cluster: ClusterView | None = None
        self._known: frozenset[str] | None = None
        """Ids of its nodes."""
        self._draining: tuple[Node, ...] = ()
        """Those that Ray is going to take, the next one first."""
        self._lives: dict[str, Life] = {}
        self._losses: dict[str, Losses] = {}
        self._settled_s = 0.0
        self._now = 0.0
        self._began_s: float | None = None
        self._write_interval_s = PROGRESS_INTERVAL_S
        self._status_interval_s = 0.0
        self._jobs = LiveJobs(store)
        self._scheduling = Scheduling(store, PlanLog(home.plans), decide)
        self._execution = Execution(store, groups, self._jobs, self._admitted)
        self._notices = Notices(store, self._jobs)
        self._upkeep = Upkeep(store, home)
        self.live_jobs = 0
        """Jobs that have not ended, as of the last round."""
        self.seen_s: float | None = None
        """When the cluster's nodes were last read; None: not yet."""

    def step(self, now: float) -> None:
        self._now = now
        self._observe_cluster(now)
        jobs = self._jobs.refresh()
        self.live_jobs = len(jobs)
        self._forget_ended({job.id for job in jobs})
        self._forget_secrets(now)
        if self._cluster is not None:
            self._schedule(self._cluster, now)
        active = [job for job in self._jobs.all() if job.state.active]
        self._write_interval_s = max(PROGRESS_INTERVAL_S, len(active) / MAX_WRITES_PER_S)
        self._status_interval_s = len(active) / MAX_ASKS_PER_S
        for job in active:
            self._advance(job, now)
        self._keep_standby(self._jobs.all(), now)
        self._provisioner.step(now)
        self._upkeep.step(now)

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
            self._cluster, self._known = view, frozenset(node.id for node in view.nodes)
            self._draining = tuple(sorted((node for node in view.nodes if node.draining), key=_drained_at))
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

    def _forget_secrets(self, now: float) -> None:
        for job_id in [job_id for job_id, due_s in self._forgets.items() if now >= due_s]:
            del self._forgets[job_id]
            self._secrets.forget(self._store, job_id)

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

    # what waits

    def _end_waiting(self, now: float) -> dict[str, str]:
        """End those that wait and never will run. Returns why others are not the scheduler's yet, by job id."""
        blocked: dict[str, str] = {}
        waiting = self._jobs.waiting()
        names = {name for job in waiting for name in job.spec.scheduling.after}
        states = self._store.states(names) if names else {}
        for job in waiting:
            found = standing(job, states) if job.spec.scheduling.after else Standing()
            if (end := _end_of_waiting(job, found.never)) is not None:
                self._guarded(job, lambda job=job, end=end: self._moved(job, finish(self._store, job, end, now)))  # type: ignore[misc]
            elif found.waits_for:
                blocked[job.id] = found.waits_for
        return blocked

    def _schedule(self, cluster: ClusterView, now: float) -> None:
        blocked = self._end_waiting(now)
        cluster = self._provisioner.sight(cluster, now)
        self._execution.go_on(cluster, now)
        queue = [job for job in self._jobs.waiting() if job.id not in blocked]
        active = {job.id: (job, self._facts(job, now)) for job in self._jobs.all() if job.state.active}
        planned = None if self._seeks(now) else self._scheduling.plan(cluster, queue, active, now)
        if planned is not None:
            self._provisioner.heard(planned[1], cluster, now)
            self._notices.decided(*planned)
            if not self._execution.carry_out(planned[1], now):
                self._scheduling.look_again()
        self._notices.tell(blocked, now)

    def _seeks(self, now: float) -> bool:
        """Jobs that ran on nodes that are gone, as after a restart of Ray's head, come before those that were behind them."""
        self._began_s = now if self._began_s is None else self._began_s
        if now - self._began_s > SEEK_LIMIT_S:
            return False
        lives = ((job, self._lives.get(job.id)) for job in self._jobs.all() if job.state.active)
        return any((life is None or life.sought) and self._gone_nodes(job) for job, life in lives)

    def _facts(self, job: Job, now: float) -> Facts:
        life, is_short = self._lives.get(job.id), job.num_placed < job.spec.resources.num_workers
        if life is None:
            return Facts()
        may_grow = is_short and job.order is None and life.may_grow(job, now)
        return life.facts if life.facts.may_grow == may_grow else replace(life.facts, may_grow=may_grow)

    def _admitted(self, job: Job) -> None:
        self._lives[job.id] = self._new_life(job, Phase.START, self._now)

    # what runs

    def _advance(self, job: Job, now: float) -> None:
        life = self._lives.get(job.id)
        if life is None:
            life = self._lives[job.id] = self._new_life(job, Phase.FIND, now)
        life.gone_nodes = self._gone_nodes(job)
        life.write_interval_s, life.status_interval_s = self._write_interval_s, self._status_interval_s
        self._preempt_drained(job, now)
        self._guarded(job, lambda: self._moved(job, life.advance(self._limited(job, now), now)))

    def _limited(self, job: Job, now: float) -> Job:
        """Asked to stop, if its time limit is over."""
        limit_s = job.spec.scheduling.time_limit_s
        if not limit_s or job.stop_requested or now - (job.started_s or now) + job.service.ran_s < limit_s:
            return job
        event = Event(kind=EventKind.STOP_REQUESTED, job_id=job.id, time_s=now, message=f"{over_limit(job)}: it saves and ends")
        return self._store.update(job, [event], stop_requested="limit")

    def _gone_nodes(self, job: Job) -> list[str]:
        """Those of its place that Ray does not know as living any more. They were there when the place was chosen."""
        known = self._known
        return [] if known is None else [node_id for node_id, _ in job.placement if node_id not in known]

    def _preempt_drained(self, job: Job, now: float) -> None:
        """Ray is going to take a node of the job's: the earliest deadline counts."""
        held = {node_id for node_id, _ in job.placement}
        first = next((node for node in self._draining if node.id in held), None)
        if first is not None:
            self._lives[job.id].preempt(job, f"Ray drains node {first.id[:8]}", first.drain_deadline_s, now)

    def _moved(self, old: Job, new: Job) -> None:
        self._jobs.wrote(new)
        if new.state is not old.state:
            log.info("%s: %s -> %s %s", new.id, old.state.value, new.state.value, new.reason)
        if not new.state.active:
            self._lives.pop(new.id, None)
        if new.state.terminal:
            self._finished(new)

    def _finished(self, job: Job) -> None:
        self._notices.forget(job.id)
        self._forgets[job.id] = self._now + SECRETS_STAY_S
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


def _drained_at(node: Node) -> tuple[bool, float, str]:
    return (node.drain_deadline_s is None, node.drain_deadline_s or 0.0, node.id)


def _end_of_waiting(job: Job, never: str) -> JobResult | None:
    """Of a job that waits, if it is not to run any more. `never`: why what it waits for will not come."""
    if job.stop_requested:
        return ended(job, EndReason.CANCELLED, "cancelled while it waited")
    if never:
        return ended(job, EndReason.DEPENDENCY, never)
    limit_s = job.spec.scheduling.time_limit_s
    return ended(job, EndReason.TIME_LIMIT, over_limit(job)) if limit_s and job.service.ran_s >= limit_s else None
