"""Jobs that may run on fewer workers than they ask for: when one shrinks, and when it grows back. Pure.

A job shrinks only where nodes are missing: its whole gang would not fit if nothing else ran, and has not for `shrink_after_s`. It then asks
for the largest number of workers that it may have and that would fit if nothing else ran, and waits for these as any job does; those
behind it wait meanwhile. Nodes that others only use come back: the whole gang waits for them.

A job grows when its whole gang fits into what is free and what it holds itself, and no job waits that could run. From the order until it
starts again, that place is kept for it.
"""

from __future__ import annotations

from dataclasses import replace

from orchestrator.control.scheduler.model import Demand, QueuedJob, RunningJob
from orchestrator.control.scheduler.place import Free, give_back, place, take


def possible(job: QueuedJob, everything: tuple[Free, ...]) -> Demand | None:
    """What of `job` would fit if nothing else ran: the whole gang (`job.demand` itself), else a smaller one, or None."""
    smaller = (replace(job.demand, num_workers=count) for count in reversed(job.smaller))
    return next((demand for demand in (job.demand, *smaller) if place(everything, demand) is not None), None)


def starts_at(job: QueuedJob, demand: Demand, now: float) -> float:
    """When `job` may start with `demand`: a smaller gang only after its wait."""
    if demand is job.demand:
        return now
    return (now if job.short_since_s is None else job.short_since_s) + job.shrink_after_s


def keep_for_growing(free: tuple[Free, ...], running: list[RunningJob]) -> tuple[Free, ...]:
    """What is free for others while jobs are on their way to a larger place."""
    for job in running:
        if job.growing:
            free = _keep(job, free) or free
    return free


def growths(free: tuple[Free, ...], running: list[RunningJob]) -> tuple[tuple[str, int], ...]:
    """(job id, number of workers) of each job that finds a place for its whole gang."""
    found = []
    for job in running:
        if job.may_grow and not job.growing and (left := _keep(job, free)) is not None:
            free = left
            found.append((job.job_id, job.demand.num_workers))
    return tuple(found)


def _keep(job: RunningJob, free: tuple[Free, ...]) -> tuple[Free, ...] | None:
    """What of `free` is left beside a place for the whole gang, None if it has none. It may lie on other nodes than what the job holds,
    which is not free before the job has left."""
    without = give_back(free, job.demand, job.placement)
    placement = place(without, job.demand)
    if placement is None:
        return None
    pairs = zip(free, take(without, job.demand, placement), strict=True)
    return tuple(
        replace(now, cpu_units=min(now.cpu_units, then.cpu_units), gpus=min(now.gpus, then.gpus)) for now, then in pairs
    )  # fmt: skip
