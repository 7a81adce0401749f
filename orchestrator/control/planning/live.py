"""The jobs that have not ended, kept in mind: of the store only what has changed is read again."""

from __future__ import annotations

from orchestrator.control.records.store import JobStore
from orchestrator.job import Job, JobState


class LiveJobs:
    def __init__(self, store: JobStore) -> None:
        self._store = store
        self._jobs: dict[str, Job] = {}

    def refresh(self) -> list[Job]:
        """All of them, in the order of their submission."""
        ids, changed = self._store.live({job.id: job.version for job in self._jobs.values()})
        known = self._jobs | {job.id: job for job in changed}
        self._jobs = {job_id: known[job_id] for job_id in ids}
        return list(self._jobs.values())

    def wrote(self, job: Job) -> None:
        """It stands so in the store now."""
        if job.state.terminal:
            self._jobs.pop(job.id, None)
        else:
            self._jobs[job.id] = job

    def all(self) -> list[Job]:
        return list(self._jobs.values())

    def waiting(self) -> list[Job]:
        return [job for job in self._jobs.values() if job.state is JobState.QUEUED]

    def __getitem__(self, job_id: str) -> Job:
        return self._jobs[job_id]

    def get(self, job_id: str) -> Job | None:
        return self._jobs.get(job_id)
