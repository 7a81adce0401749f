"""What a job that has ended has kept is deleted: its row is marked, then its objects go, then its MLflow run."""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice

from orchestrator.control.records.database import Also
from orchestrator.control.records.store import JobStore
from orchestrator.errors import StateError, StorageError
from orchestrator.events import Event, EventKind
from orchestrator.job import Job
from orchestrator.paths import JobKeys, commit_of
from orchestrator.storage import HasUploads, ObjectStore
from orchestrator.tracking.removal import delete_run_apart

_AT_ONCE, _THREADS = 1000, 16

log = logging.getLogger("removal")


@dataclass(frozen=True, kw_only=True)
class Removed:
    objects: int
    """That were deleted by this call."""
    done: bool
    """Nothing is left."""


def mark(store: JobStore, job: Job, now: float, audited: Also, open_objects: Callable[[], ObjectStore]) -> Job:
    """From now on it cannot be resumed. Raises StateError if it has not ended, or while a checkpoint of it is pinned; StorageError."""
    if not job.state.terminal:
        raise StateError(f"{job.id} is {job.state.value}: it can be removed when it has ended. `orchestrator cancel {job.id}`")
    _check_unpinned(open_objects(), job.id)
    if _removed(store, job):
        return job
    event = Event(kind=EventKind.REMOVED, job_id=job.id, time_s=now, message="what it kept is deleted")
    progress = dataclasses.replace(job.progress, committed_step=None, best_step=None, best_value=None)
    result = job.result and dataclasses.replace(job.result, resumable=False)
    return store.update(job, [event], also=[audited], progress=progress, result=result)


def check_not_removed(store: JobStore, job: Job) -> None:
    """Raises StateError."""
    if _removed(store, job):
        raise StateError(f"{job.id} was removed: nothing is left that it could go on from. Submit it anew.")


def _removed(store: JobStore, job: Job) -> bool:
    return job.state.terminal and store.last_event(job.id, EventKind.REMOVED) is not None


def _check_unpinned(objects: ObjectStore, job_id: str) -> None:
    """Raises StateError. Also a version in MLflow's registry pins the checkpoint that it points to."""
    pinned = sorted(commit_of(info.key)[1] for info in objects.list(JobKeys(job_id).pins))
    if pinned:
        raise StateError(
            f"{job_id} has pinned checkpoints (step {', '.join(map(str, pinned))}), which nothing deletes: "
            f"first `orchestrator checkpoint unpin {job_id} {pinned[0]}`"
        )


def delete_all(job: Job, store: ObjectStore, within_s: float, secrets: Mapping[str, str]) -> Removed:
    """As much as there is time for. Raises StorageError, TrackingUnavailable."""
    limit_s = time.monotonic() + within_s
    keys, deleted = JobKeys(job.id), 0
    for prefix in (keys.commits, keys.root):  # the commits first, so that nobody begins to read what is about to go
        while batch := [info.key for info in islice(store.list(prefix), _AT_ONCE)]:
            with ThreadPoolExecutor(_THREADS) as pool:
                deleted += sum(1 for _ in pool.map(store.delete, batch))
            if time.monotonic() >= limit_s:
                return Removed(objects=deleted, done=False)
    _abort_uploads(store, keys.root)
    run_id = (job.result.mlflow_run_id if job.result else "") or job.progress.mlflow_run_id
    if run_id:
        delete_run_apart(job.spec.tracking.uri, run_id, secrets)
    return Removed(objects=deleted, done=True)


def _abort_uploads(store: ObjectStore, prefix: str) -> None:
    if isinstance(store, HasUploads):
        try:
            store.abort_unfinished(prefix, 0.0)
        except StorageError as error:  # not every store and key can list them
            log.info("unfinished uploads stay: %s", error)
