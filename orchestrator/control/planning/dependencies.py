"""Jobs that start only after others have succeeded (`scheduling.after`). Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from orchestrator.errors import ConfigError
from orchestrator.job import Job, JobState


@dataclass(frozen=True)
class Standing:
    """Of a job that waits for others."""

    waits_for: str = ""
    """Why it may not start yet, for people; empty: they have all succeeded."""
    never: str = ""
    """Why it never will, for people."""


def standing(job: Job, states: Mapping[str, JobState]) -> Standing:
    """`states`: of the jobs that it names."""
    for name in job.spec.scheduling.after:
        state = states.get(name)
        if state in (JobState.FAILED, JobState.CANCELLED):
            how = "failed" if state is JobState.FAILED else "was cancelled"
            return Standing(never=f"{name}, after which it was to start, {how}")
    pending = [name for name in job.spec.scheduling.after if states.get(name) is not JobState.SUCCEEDED]
    if not pending:
        return Standing()
    first = states.get(pending[0])
    others = f", and for {len(pending) - 1} more" if len(pending) > 1 else ""
    return Standing(waits_for=f"waits for {pending[0]} to succeed, which is {first.value if first else 'unknown'}{others}")


def check_after(names: Sequence[str], find: Callable[[str], Job], job_id: str = "") -> tuple[str, ...]:
    """The full ids of the jobs that a job names; each once. `job_id`: of the job itself, if it has one already.

    Raises JobNotFound with the nearest name, ConfigError for a job that has not succeeded and will not, and for a circle.
    """
    found: dict[str, Job] = {}
    for name in names:
        job = find(name)
        if job.state in (JobState.FAILED, JobState.CANCELLED):
            raise ConfigError(
                f"scheduling.after=[{name}] is not possible: {job.id} has {job.state.value}. Resume it first, or leave it out."
                if job.state is JobState.FAILED
                else f"scheduling.after=[{name}] is not possible: {job.id} was cancelled. Resume it first, or leave it out."
            )
        found[job.id] = job
    circle = _way_to(job_id, found.values(), find) if job_id else ()
    if circle:
        raise ConfigError(f"scheduling.after is not possible: {job_id} would wait for itself: {' -> '.join(circle)}.")
    return tuple(found)


def _way_to(job_id: str, jobs: Iterable[Job], find: Callable[[str], Job]) -> tuple[str, ...]:
    """From one of the jobs to the one of that id, by what each waits for; empty: there is none."""
    for job in jobs:
        if job.id == job_id:
            return (job.id,)
        if not job.state.terminal and (rest := _way_to(job_id, map(find, job.spec.scheduling.after), find)):
            return (job.id, *rest)
    return ()
