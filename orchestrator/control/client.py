"""What the command line asks of the control plane. It talks to the job store only, so it is quick and needs no controller."""

from __future__ import annotations

import dataclasses
import json
import re
import secrets as random_source
import time
from collections.abc import Callable, Collection, Mapping
from typing import Any

from orchestrator.control.reputation import MEMORY_S, Incident
from orchestrator.control.scheduler import ClusterView, Demand, feasible
from orchestrator.control.store import JobStore
from orchestrator.control.summary import JobSummary
from orchestrator.errors import ConfigError, StaleWrite, StateError, UserError, nearest
from orchestrator.events import Event, EventKind
from orchestrator.job import Job, JobState, Progress
from orchestrator.layout import legal_world_sizes
from orchestrator.paths import Home, write_private
from orchestrator.spec import JobSpec

CLUSTER = "cluster"
"""Key of the job store's facts: the newest view of the cluster's nodes, kept by the controller."""

_ID_LETTERS = "abcdefghijklmnopqrstuvwxyz234567"  # RFC 4648 base32, in lower case
_STOP_MODES = ("drain", "now")
_STRENGTH = {"": 0, "drain": 1, "now": 2}


class Client:
    """The jobs of one home."""

    def __init__(self, home: Home) -> None:
        self.home = home
        self._store = JobStore(home.jobs_db)

    def submit(self, spec: JobSpec, secrets: Mapping[str, str]) -> Job:
        """Add a job to the queue; on return it is durable.

        `secrets` are environment variables of its processes (S3 keys); they are kept beside the queue, readable by the owner only.
        Raises ConfigError if the cluster can never run it.
        """
        spec = self._completed(spec)
        self._check_feasible(spec)
        now = time.time()
        job = Job(id=_new_id(spec), spec=spec, submitted_s=now, queued_s=now, reason="waits for the controller")
        self._write_secrets(job.id, secrets)
        self._store.put(job, [_event(EventKind.SUBMITTED, job.id, now, f"{spec.resources.num_workers} workers")])
        return job

    def jobs(self) -> list[Job]:
        """All jobs in the order of their submission."""
        return self._store.all()

    def summaries(self, states: Collection[JobState] | None = None, limit: int = 0) -> tuple[list[JobSummary], int]:
        """(what a list shows, how many jobs there are of these states). See `JobStore.summaries`."""
        return self._store.summaries(states, limit), self._store.count(states)

    def job(self, id_or_prefix: str) -> Job:
        """Raises JobNotFound with the nearest names."""
        return self._store.find(id_or_prefix)

    def events(self, job_id: str, after: int = 0) -> list[tuple[int, Event]]:
        """(number, event) of those with a number above `after`."""
        return self._store.events(job_id, after)

    def request_stop(self, job_id: str, mode: str) -> Job:
        """Ask that a job ends: `drain` saves a checkpoint first, `now` does not wait. Of two requests the stronger one holds.

        A job that has ended already is returned as it is.
        """
        if mode not in _STOP_MODES:
            raise ConfigError(f"mode={mode} is not possible: allowed is {' or '.join(_STOP_MODES)}.")

        def change(job: Job) -> Job:
            if job.state.terminal or _STRENGTH[job.stop_requested] >= _STRENGTH[mode]:
                return job
            event = _event(EventKind.STOP_REQUESTED, job.id, time.time(), "after a checkpoint" if mode == "drain" else "at once")
            return self._store.update(job, [event], stop_requested=mode)

        return self._guarded(job_id, change)

    def resume(self, job_id: str, spec: JobSpec | None, secrets: Mapping[str, str]) -> Job:
        """Queue a job that has ended once more, under its own id; it continues from its newest commit.

        `spec`: what is asked for now; None: as before. A job that has not ended needs nothing: the controller puts it back to the
        queue if its cluster is gone. It is returned as it is. Raises StateError if it is about to stop, or for another `spec`.
        """

        def change(job: Job) -> Job:
            new = self._completed(spec or job.spec)
            if not job.state.terminal:
                if spec is not None and new != job.spec:
                    raise StateError(f"{job.id} is {job.state.value}: its settings can be changed only after it has ended.")
                if job.stop_requested:
                    raise StateError(f"{job.id} is about to stop. Resume it when it has ended.")
                self._write_secrets(job.id, secrets)
                return job
            self._check_feasible(new)
            self._write_secrets(job.id, secrets)
            now, run = time.time(), job.run + 1
            return self._store.update(
                job, [_event(EventKind.RESUMED, job.id, now, f"run {run}")],
                state=JobState.QUEUED, run=run, spec=new, queued_s=now, started_s=None, ended_s=None, stop_requested="", result=None,
                reason="waits for the controller", progress=_carried_over(job.progress, new),
            )  # fmt: skip

        return self._guarded(job_id, change)

    def nodes(self) -> tuple[ClusterView, list[Incident]]:
        """(the cluster as its controller last saw it, what has spoken against its machines of late)."""
        view: dict[str, Any] | None = self._store.meta(CLUSTER)
        return ClusterView.from_dict(view) if view else ClusterView(), self._store.incidents(time.time() - MEMORY_S)

    def forgive(self, node: str) -> int:
        """What has happened on the machine `node` (a host name) counts no more. Returns how many incidents that was.

        Raises UserError, with the nearest name, for a machine that is neither in the cluster nor in the records.
        """
        view, incidents = self.nodes()
        known = {found.name for found in view.nodes} | {incident.node for incident in incidents}
        if node not in known:
            raise UserError(f"no node is named '{node}'. Known: {', '.join(sorted(known)) or 'none'}.{nearest(node, sorted(known))}")
        return self._store.forgive(node)

    def _guarded(self, job_id: str, change: Callable[[Job], Job]) -> Job:
        """Apply `change` to the newest row, again if the controller wrote in between."""
        while True:
            try:
                return change(self._store.find(job_id))
            except StaleWrite:
                continue

    def _completed(self, spec: JobSpec) -> JobSpec:
        """`spec` with the home's own store and tracking database where none is named."""
        if not spec.storage.url:
            spec = dataclasses.replace(spec, storage=dataclasses.replace(spec.storage, url=self.home.store.as_uri()))
        if spec.tracking.enabled and not spec.tracking.uri:
            uri = f"sqlite:///{self.home.mlflow / 'mlflow.db'}"
            spec = dataclasses.replace(spec, tracking=dataclasses.replace(spec.tracking, uri=uri))
        return spec

    def _check_feasible(self, spec: JobSpec) -> None:
        view: dict[str, Any] | None = self._store.meta(CLUSTER)
        least = legal_world_sizes(spec)[0] if spec.resources.min_workers else spec.resources.num_workers
        demand = dataclasses.replace(Demand.of(spec.resources), num_workers=least)
        why = feasible(ClusterView.from_dict(view), demand) if view else None
        if why:
            name = "num_workers" if least == spec.resources.num_workers else "min_workers"
            raise ConfigError(
                f"resources.{name}={least} is more than the cluster can ever have: the job {why}. "
                "Ask for fewer workers, or less for each (resources.cpus_per_worker)."
            )

    def _write_secrets(self, job_id: str, secrets: Mapping[str, str]) -> None:
        if secrets:
            write_private(self.home.secrets(job_id), json.dumps(dict(secrets)))


def _new_id(spec: JobSpec) -> str:
    name = re.sub(r"[^a-z0-9]+", "-", (spec.name or spec.workload.name).lower()).strip("-")[:40] or "job"
    return f"{name}-{''.join(random_source.choice(_ID_LETTERS) for _ in range(6))}"


def _carried_over(progress: Progress, spec: JobSpec) -> Progress:
    """What stays true while the job waits once more."""
    return Progress(
        step=progress.step, max_steps=spec.training.max_steps, committed_step=progress.committed_step, best_step=progress.best_step,
        best_value=progress.best_value, epoch=progress.epoch, ledger=progress.ledger,
    )  # fmt: skip


def _event(kind: EventKind, job_id: str, time_s: float, message: str) -> Event:
    return Event(kind=kind, job_id=job_id, time_s=time_s, message=message)
