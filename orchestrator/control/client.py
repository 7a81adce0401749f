"""What people and programs ask of the control plane, for a user: command line, HTTP API and `orchestrator.client` come through here.

It talks to the job store and the object store only, so it is quick and needs no controller.
"""

from __future__ import annotations

import dataclasses
import json
import os
import time
from collections.abc import Callable, Collection, Mapping
from typing import Any

from orchestrator.code.package import is_kept, keep_archive
from orchestrator.control.administration import Administration
from orchestrator.control.permissions import Permissions
from orchestrator.control.planning.dependencies import check_after
from orchestrator.control.planning.policy import ChosenPolicy, chosen_policy, keep_policy
from orchestrator.control.planning.reputation import MEMORY_S, Incident
from orchestrator.control.reading.opened import Opened
from orchestrator.control.reading.overview import Window, overview
from orchestrator.control.reading.pages import LogPage
from orchestrator.control.reading.questions import Explained, QueueRow, explained, queue_rows
from orchestrator.control.reading.summary import JobSummary
from orchestrator.control.reading.totals import Totals, totals
from orchestrator.control.records.audit import Entry
from orchestrator.control.records.database import checked_number, place_of
from orchestrator.control.records.store import JobStore
from orchestrator.control.records.users import Role, User, local_user
from orchestrator.control.removal import Removed, check_not_removed, delete_all, mark
from orchestrator.control.scheduler import ClusterView
from orchestrator.control.scheduler.model import Tenant
from orchestrator.control.secrets import Secrets
from orchestrator.control.submission import at_home, carried_over, check_feasible, check_secrets, check_text, checked_id, new_id
from orchestrator.errors import ConfigError, JobNotFound, StaleWrite, StateError, UserError, nearest
from orchestrator.events import Event, EventKind
from orchestrator.job import WAITS_FOR_CONTROLLER, Job, JobState
from orchestrator.paths import Home, JobKeys
from orchestrator.service import Service
from orchestrator.spec import JobSpec, StorageSpec
from orchestrator.storage import ObjectStore, open_store

CLUSTER = "cluster"
"""Key of the job store's facts: the newest view of the cluster's nodes, kept by the controller."""

REMOVAL_S = 10.0

_STOP_MODES = ("drain", "now")
_STRENGTH = {"": 0, "limit": 1, "drain": 2, "now": 3}


class Client:
    """The jobs of one home, for one user; of the account on this machine if none is given, who may do everything."""

    def __init__(
        self, home: Home, store: JobStore | None = None, user: User | None = None, clock: Callable[[], float] = time.time,
        opened: Opened | None = None,
    ) -> None:  # fmt: skip
        self.home = home
        self.user = user or local_user()
        self._beside_the_files = user is None
        self._clock = clock
        self._store = store or JobStore(place_of(home))
        self._secrets = Secrets(home)
        self._opened = opened or Opened()
        self._may = Permissions(self.user, self._store.engine)

    def acting_for(self, user: User) -> Client:
        """The same jobs, for another user."""
        return Client(self.home, self._store, user, self._clock, self._opened)

    def submit(self, spec: JobSpec, secrets: Mapping[str, str], job_id: str = "") -> Job:
        """Add a job to the queue; on return it is durable.

        `secrets` are environment variables of its processes (S3 keys); they are kept beside the queue, readable by the owner only.
        `job_id`: what it is to be named by whoever may have to ask twice; the second time the job is returned that the first one made.
        Raises LayoutError, ConfigError if the cluster, or its tenant's quota, can never hold it, JobNotFound for an unknown job in
        `scheduling.after`.
        """
        self._may.require(Role.USER, "submit", spec.name or spec.workload.name)
        check_secrets(secrets, spec)
        check_text(spec)
        spec = self._completed(self._may.owned(spec))
        if job_id and (there := self._made_before(job_id, spec)) is not None:
            return there
        self._check_feasible(spec)
        now = self._clock()
        job = Job(
            id=job_id or new_id(spec), spec=spec, submitted_s=now, queued_s=now, reason=WAITS_FOR_CONTROLLER, user=self.user.name,
            tenant=spec.scheduling.tenant,
        )  # fmt: skip
        self._secrets.write(job.id, secrets)
        submitted = _event(EventKind.SUBMITTED, job.id, now, f"{spec.resources.num_workers} workers")
        try:
            self._store.put(job, [submitted], also=[self._may.entry("submit", job.id)])
        except StateError:  # asked twice at the same moment
            if job_id and (there := self._made_before(job_id, spec)) is not None:
                return there
            raise
        return job

    def _made_before(self, job_id: str, spec: JobSpec) -> Job | None:
        """The job of that name, if the same user has asked for the same. Raises StateError if it is another one."""
        try:
            there = self._store.get(checked_id(job_id))
        except JobNotFound:
            return None
        if (there.user, there.spec) != (self.user.name, spec):
            raise StateError(f"there is already a job named {job_id}")
        return there

    def has_code(self, content_hash: str) -> bool:
        """Whether the home's own store holds that package, and it is not about to be deleted."""
        return is_kept(self._own_store(), content_hash)

    def check_may_keep(self, content_hash: str) -> None:
        """Raises PermissionDenied for a user who may not put code into the home's own store."""
        self._may.require(Role.USER, "keep code", content_hash)

    def keep_archive(self, content_hash: str, archive: bytes) -> bool:
        """Put a packaged working directory into the home's own store. Raises ConfigError for what is no package of that hash."""
        self.check_may_keep(content_hash)
        self._may.note("keep code", content_hash, f"{len(archive)} bytes")
        return keep_archive(self._own_store(), content_hash, archive)

    def jobs(self) -> list[Job]:
        """All jobs in the order of their submission."""
        return self._store.all()

    def summaries(self, states: Collection[JobState] | None = None, limit: int = 0) -> tuple[list[JobSummary], int]:
        """(what a list shows, how many jobs there are of these states). See `JobStore.summaries`."""
        return self._store.summaries(states, limit), self._store.count(states)

    def totals(self) -> Totals:
        """How many jobs there are, and what those take that hold a place."""
        return totals(self._store.engine)

    def job(self, id_or_prefix: str) -> Job:
        """Raises JobNotFound with the nearest names."""
        return self._store.find(id_or_prefix)

    def events(self, job_id: str, after: int = 0, limit: int | None = None) -> list[tuple[int, Event]]:
        """(number, event) of those with a number above `after`. Raises ConfigError for an `after` that no event can have."""
        return self._store.events(job_id, checked_number("after", after), limit)

    def logs(self, job: Job, after: str = "", rank: int | None = None) -> LogPage:
        """The next lines that all ranks, or one, have printed. See `read_page`. Raises UserError for an offset of no line of it."""
        return self._opened.log_page(self.object_store(job), job, after, rank)

    def artifact(self, job: Job, name: str) -> bytes:
        """A file that the job has left. Raises ObjectNotFound, ConfigError for a name that cannot be."""
        return self.object_store(job).get(JobKeys(job.id).artifact(name))

    def overview(self, window: Window) -> dict[str, Any]:
        """The cluster and a part of each list of jobs. See `orchestrator.control.reading.overview`."""
        return overview(self._store, self.nodes()[0], window)

    def ping(self) -> None:
        """Raises StoreUnavailable where the job store does not answer."""
        self._store.meta(CLUSTER)

    def request_stop(self, job_id: str, mode: str) -> Job:
        """Ask that a job ends: `drain` saves a checkpoint first, `now` does not wait. Of two requests the stronger one holds.

        A job that has ended already is returned as it is.
        """
        if mode not in _STOP_MODES:
            raise ConfigError(f"mode={mode} is not possible: allowed is {' or '.join(_STOP_MODES)}.")

        def change(job: Job) -> Job:
            self._may.require_own(job, "stop")
            if job.state.terminal or _STRENGTH[job.stop_requested] >= _STRENGTH[mode]:
                return job
            event = _event(EventKind.STOP_REQUESTED, job.id, self._clock(), "after a checkpoint" if mode == "drain" else "at once")
            return self._store.update(job, [event], also=[self._may.entry("stop", job.id, mode)], stop_requested=mode)

        return self._guarded(job_id, change)

    def resume(self, job_id: str, spec: JobSpec | None, secrets: Mapping[str, str]) -> Job:
        """Queue a job that has ended once more, under its own id; it continues from its newest commit.

        `spec`: what is asked for now; None: as before. A job that has not ended needs nothing but to know the cluster that it is resumed
        on: the controller puts it back to the queue if its own is gone. Raises StateError if it is about to stop, or for a `spec` that
        differs in more than the cluster.
        """

        def change(job: Job) -> Job:
            self._may.require_own(job, "resume")
            check_not_removed(self._store, job)
            new = self._completed(self._may.owned(spec or job.spec), job.id)
            check_secrets(secrets, new if job.state.terminal or secrets else None)
            if not job.state.terminal:
                moved = dataclasses.replace(job.spec, cluster=new.cluster)
                if spec is not None and new != moved:
                    raise StateError(f"{job.id} is {job.state.value}: its settings can be changed only after it has ended.")
                if job.stop_requested:
                    raise StateError(f"{job.id} is about to stop. Resume it when it has ended.")
                self._secrets.write(job.id, secrets)
                noted = self._may.entry("resume", job.id, f"on the cluster {new.cluster.address or 'of its own'}")
                return job if moved == job.spec else self._store.update(job, also=[noted], spec=moved)
            self._check_feasible(new)
            self._secrets.write(job.id, secrets)
            now, run = self._clock(), job.run + 1
            return self._store.update(
                job, [_event(EventKind.RESUMED, job.id, now, f"run {run}")], also=[self._may.entry("resume", job.id, f"run {run}")],
                state=JobState.QUEUED, run=run, spec=new, tenant=new.scheduling.tenant, queued_s=now, started_s=None, ended_s=None,
                stop_requested="", result=None,
                reason=WAITS_FOR_CONTROLLER, progress=carried_over(job.progress, new), service=Service(attained=job.service.attained),
            )  # fmt: skip

        with self._secrets.kept():
            return self._guarded(job_id, change)

    def remove(self, job_id: str, secrets: Mapping[str, str], within_s: float = REMOVAL_S) -> Removed:
        """Delete what a job that has ended keeps in its object store, and its MLflow run; its row and events stay.

        As much as `within_s` seconds allow: who calls again goes on with it. `secrets`: as of its submission.
        Raises StateError if it has not ended, or while a checkpoint of it is pinned.
        """
        check_secrets(secrets)
        environ = {**os.environ, **secrets}

        def change(job: Job) -> Job:
            self._may.require_own(job, "remove")
            return mark(self._store, job, self._clock(), self._may.entry("remove", job.id), lambda: open_store(job.spec.storage, environ))

        job = self._guarded(job_id, change)
        return delete_all(job, open_store(job.spec.storage, environ), within_s, secrets)

    # the queue

    def queue(self) -> list[QueueRow]:
        """The jobs that wait: in the order of the scheduler, then those that wait for other jobs."""
        return queue_rows(self._store.all([JobState.QUEUED]), self._clock())

    def explain(self, job_id: str) -> Explained:
        """Why a job waits, who holds what it needs, and what would let it start now; of a job that does not wait, how it stands."""
        return explained(self._store, self._store.find(job_id), self.nodes()[0], self._clock())

    def set_priority(self, job_id: str, priority: int) -> Job:
        """Of a job that has not ended: from the next decision on. Raises ConfigError for a priority that there is not, StateError for a
        job that has ended."""

        def change(job: Job) -> Job:
            self._may.require_own(job, "priority")
            if job.state.terminal:
                raise StateError(f"{job.id} has ended: {job.state.value}. A priority is for a job that waits or runs.")
            before = job.spec.scheduling
            if before.priority == priority:
                return job
            event = _event(EventKind.PRIORITY, job.id, self._clock(), f"{before.priority} -> {priority}")
            scheduling = dataclasses.replace(before, priority=priority)
            noted = self._may.entry("priority", job.id, event.message)
            return self._store.update(job, [event], also=[noted], spec=dataclasses.replace(job.spec, scheduling=scheduling))

        return self._guarded(job_id, change)

    def policy(self) -> ChosenPolicy:
        """By which the control plane decides who runs."""
        return chosen_policy(self._store)

    def set_policy(self, name: str, settings: Mapping[str, Any]) -> ChosenPolicy:
        """From the next decision on, and for every later controller. `settings`: as in `conf/scheduler`. Raises ConfigError."""
        self._may.require(Role.ADMIN, "policy", name)
        kept = keep_policy(self._store, ChosenPolicy(name=name, settings=settings))
        self._may.note("policy", name, json.dumps(dict(settings), sort_keys=True))
        return kept

    # machines

    def nodes(self) -> tuple[ClusterView, list[Incident]]:
        """(the cluster as its controller last saw it, what has spoken against its machines of late)."""
        view: dict[str, Any] | None = self._store.meta(CLUSTER)
        return ClusterView.from_dict(view) if view else ClusterView(), self._store.incidents(self._clock() - MEMORY_S)

    def forgive(self, node: str) -> int:
        """What has happened on the machine `node` (a host name) counts no more. Returns how many incidents that was.

        Raises UserError, with the nearest name, for a machine that is neither in the cluster nor in the records.
        """
        self._may.require(Role.ADMIN, "forgive", node)
        view, incidents = self.nodes()
        known = {found.name for found in view.there.nodes} | {incident.node for incident in incidents}
        if node not in known:
            raise UserError(f"no node is named '{node}'. Known: {', '.join(sorted(known)) or 'none'}.{nearest(node, sorted(known))}")
        forgiven = self._store.forgive(node)
        self._may.note("forgive", node, f"{forgiven} incidents")
        return forgiven

    def audit(self, after: int | None = None, limit: int = 1000) -> list[Entry]:
        """Who changed what, in order: the first entries with a number above `after`; None: the newest.

        Raises ConfigError for an `after` that no entry can have.
        """
        return self._may.read(None if after is None else checked_number("after", after), limit)

    @property
    def users(self) -> Administration:
        return Administration(self._store.engine, self._may, keep_an_admin=not self._beside_the_files)

    def _own_store(self) -> ObjectStore:
        return open_store(StorageSpec(url=self.home.store.as_uri()))

    def object_store(self, job: Job) -> ObjectStore:
        """Where it keeps what it leaves. With the submitter's keys while the job has not ended, else with this process's own."""
        return self._opened.store(job.spec.storage, self._secrets.read(job.id))

    def _guarded(self, job_id: str, change: Callable[[Job], Job]) -> Job:
        """Apply `change` to the newest row, again if the controller wrote in between."""
        while True:
            try:
                return change(self._store.find(job_id))
            except StaleWrite:
                continue

    def _completed(self, spec: JobSpec, job_id: str = "") -> JobSpec:
        """`spec` with the home's own store and tracking database where none is named, and whole ids of the jobs that it waits for."""
        if spec.scheduling.after:
            after = check_after(spec.scheduling.after, self._store.find, job_id)
            spec = dataclasses.replace(spec, scheduling=dataclasses.replace(spec.scheduling, after=after))
        return at_home(spec, self.home)

    def _check_feasible(self, spec: JobSpec) -> None:
        quota = self.policy().policy.tenants.get(spec.scheduling.tenant, Tenant()).quota
        view: dict[str, Any] | None = self._store.meta(CLUSTER)
        check_feasible(spec, ClusterView.from_dict(view) if view else None, quota)


def _event(kind: EventKind, job_id: str, time_s: float, message: str) -> Event:
    return Event(kind=kind, job_id=job_id, time_s=time_s, message=message)
