"""Worker groups on Ray: supervisors are detached actors found by name. Imports Ray: set the environment first."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, wait
from typing import Any

import ray
from ray.exceptions import ActorDiedError, GetTimeoutError

from orchestrator.control.nodes.groups import GroupStatus, SupervisorGone
from orchestrator.control.nodes.threads import Threads
from orchestrator.control.secrets import Secrets
from orchestrator.errors import ObjectNotFound
from orchestrator.events import Event, EventKind
from orchestrator.job import Job, JobResult, JobState, progress_from_dict, result_from_dict
from orchestrator.paths import Home, JobKeys
from orchestrator.storage import ObjectStore, open_store
from orchestrator.supervision import place
from orchestrator.supervision.ledger import Wait
from orchestrator.supervision.place import Placement
from orchestrator.supervision.standby import Standby
from orchestrator.supervision.supervisor import find_supervisor, start_supervisor
from orchestrator.supervision.warm_client import RANK_ENTRY

ANSWER_LIMIT_S = 20.0
"""How long an answer of a supervisor is waited for; Ray may be bringing it back meanwhile."""
CLOSE_LIMIT_S = 5.0

log = logging.getLogger("controller")


class RayGroups:
    """Calls that may wait for Ray or for the object store run on `threads`."""

    def __init__(self, home: Home, threads: Threads, rank_entry: str = RANK_ENTRY) -> None:
        """`rank_entry`: what the ranks run; tests give a double."""
        self._home = home
        self._rank_entry = rank_entry
        self._threads = threads
        self._standby = Standby(home)
        self._filling: Future[None] | None = None

    def take_standby(self, job: Job, placement: Placement) -> tuple[str, ...]:
        return self._standby.take([node for node, _ in placement], agents=not job.spec.resources.gpus_per_worker)

    def return_standby(self, placement: Placement, standby: tuple[str, ...]) -> None:
        self._standby.put_back([node for node, _ in placement], standby)

    def keep_standby(self, nodes: Sequence[str], jobs: Sequence[Job]) -> None:
        if self._filling is not None and not self._filling.done():
            return
        if self._filling is not None and (error := self._filling.exception()) is not None:
            log.warning("no actors stand by: %s: %s", type(error).__name__, error)
        self._filling = None
        if self._standby.lacks(nodes):
            self._filling = self._threads.starts.submit(self._standby.fill, nodes, {name for job in jobs for name in job.standby})

    def close(self) -> None:
        """End what stands by, once what is being started is known."""
        if self._filling is not None:
            wait([self._filling], timeout=CLOSE_LIMIT_S)
        self._standby.close()

    def find(self, job: Job) -> Future[bool]:
        return self._threads.asks.submit(_has_begun, job)

    def start(self, job: Job) -> Future[str]:
        return self._threads.starts.submit(self._start, job)

    def status(self, job: Job, after_event: int) -> Future[GroupStatus]:
        return self._threads.asks.submit(lambda: parse_status(job, _ask(job, "status", after_event)))

    def stop(self, job: Job, mode: str) -> Future[None]:
        return self._threads.asks.submit(lambda: _ask(job, "stop", mode))

    def preempt(self, job: Job, why: str, deadline_s: float | None) -> Future[None]:
        return self._threads.asks.submit(lambda: _ask(job, "preempt", why, deadline_s))

    def resize(self, job: Job, why: str) -> Future[None]:
        return self._threads.asks.submit(lambda: _ask(job, "resize", why))

    def release(self, job: Job) -> Future[None]:
        return self._threads.releases.submit(place.release, job.id, self._home, job.standby)

    def result(self, job: Job) -> Future[JobResult | None]:
        return self._threads.results.submit(self._result, job)

    def _start(self, job: Job) -> str:
        if not place.reserve(job.id, job.spec, job.placement):
            return "reserve its place"
        ranks = [workers for _, workers in job.placement]
        try:
            start_supervisor(job.id, job.run, job.spec, self._home, ranks, self._rank_entry, wait=Wait.of(job), standby=job.standby)
        except GetTimeoutError:  # where many start at once, it is on its way: to begin anew would take longer
            return "start its supervisor"
        return ""

    def _result(self, job: Job) -> JobResult | None:
        try:
            return result_from_dict(json.loads(self._store(job).get(JobKeys(job.id).result(job.run))))
        except ObjectNotFound:
            return None

    def _store(self, job: Job) -> ObjectStore:
        return open_store(job.spec.storage, {**os.environ, **Secrets(self._home).read(job.id)})


def parse_status(job: Job, values: Mapping[str, Any]) -> GroupStatus:
    """A supervisor's answer to `status`. One that has only just begun knows of no progress yet."""
    known = values["progress"]
    return GroupStatus(
        state=JobState(values["state"]),
        progress=job.progress if known is None else progress_from_dict(known),
        source=values["source"],
        events=tuple((number, _event(event)) for number, event in values["events"]),
        ended=values["ended"],
        unwritten=None if values["unwritten"] is None else result_from_dict(values["unwritten"]),
    )


def _event(values: Mapping[str, Any]) -> Event:
    return Event(**{**values, "kind": EventKind(values["kind"])})


def _has_begun(job: Job) -> bool:
    """Whether it has a supervisor that knows of it. Where the job was starting, one that does not answer has yet to begin."""
    try:
        return find_supervisor(job.id, job.standby) is not None and bool(_ask(job, "job") == job.id)
    except GetTimeoutError:
        if job.state is JobState.STARTING:
            return False
        raise


def _ask(job: Job, method: str, *arguments: Any) -> Any:
    """The supervisor's answer. Raises SupervisorGone if there is none, or if it died and stays dead."""
    handle = find_supervisor(job.id, job.standby)
    if handle is None:
        raise SupervisorGone(f"{job.id} has no supervisor")
    try:
        return ray.get(getattr(handle, method).remote(*arguments), timeout=ANSWER_LIMIT_S)
    except ActorDiedError as error:
        raise SupervisorGone(f"the supervisor of {job.id} died: {error}") from error
