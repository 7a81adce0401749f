"""What a simulation comes to: one flat table of figures. Pure.

Times are in seconds. A job's JCT (job completion time) goes from its submission to its end, its wait is all the time in between in which
it had no place. Percentiles are linear between the closest ranks. 0 stands for what there is none of.

    avg_jct_s, p50_jct_s, p99_jct_s
    avg_wait_s              mean of all waits of a job together
    max_wait_s              the longest that any job waited at one go
    max_first_wait_s        the longest from a submission to the first start
    max_total_wait_s        the longest that any job waited in all its waits together
    avg_wait_1_gpu_s ...    avg_wait_s of the jobs of a size
    big_job_avg_wait_s      of jobs on more than 8 GPUs, mean time from submission to the first start
    preemptions, max_preemptions_of_a_job
    utilization             GPU-seconds in which a job held a GPU / (GPUs x makespan)
    makespan_s              from the first submission to the last end
    worst_tenant_slowdown   mean bounded slowdown of the tenant whose mean is highest / mean bounded slowdown of all jobs
    jain                    Jain's index of the tenants' mean bounded slowdowns x: (sum x)^2 / (n sum x^2)
    lost_gpu_hours          work that was done again, and starts after the first one
    cost                    of the GPU-hours in which a job held a GPU, by the price of the node
    plans_per_s, jobs_per_s decisions of the planner in a second of its own time; jobs simulated in a second

Bounded slowdown of a job: max(1, JCT / max(duration, 10 s)) (Feitelson, Rudolph, Schwiegelshohn, Sevcik, Wong: "Theory and practice in
parallel job scheduling", 1997). Jain's index: Jain, Chiu, Hawe: "A quantitative measure of fairness and discrimination", 1984.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean

from orchestrator.simulation.model import JobOutcome, Outcome

SLOWDOWN_BOUND_S = 10.0
BIG_JOB_GPUS = 8
"""A big job has more."""
SIZES = (("1_gpu", 1, 1), ("2_to_8_gpus", 2, 8), ("9_to_64_gpus", 9, 64), ("over_64_gpus", 65, None))
"""(name, least, most GPUs) of the classes of jobs."""


def table(outcome: Outcome, cost_per_gpu_hour: Mapping[str, float]) -> dict[str, float]:
    """`cost_per_gpu_hour`: by the id of the node; a node that is missing costs nothing."""
    jobs = outcome.jobs
    jcts = sorted(job.jct_s for job in jobs)
    held = _held_gpu_s(jobs)
    makespan_s = max((job.end_s for job in jobs), default=0.0) - min((job.job.submit_s for job in jobs), default=0.0)
    return {
        "jobs": len(jobs),
        "avg_jct_s": _mean(jcts),
        "p50_jct_s": percentile(jcts, 50),
        "p99_jct_s": percentile(jcts, 99),
        "avg_wait_s": _mean(job.waited_s for job in jobs),
        "max_wait_s": max((job.longest_wait_s for job in jobs), default=0.0),
        "max_first_wait_s": max((job.first_start_s - job.job.submit_s for job in jobs), default=0.0),
        "max_total_wait_s": max((job.waited_s for job in jobs), default=0.0),
        **{f"avg_wait_{name}_s": _mean(job.waited_s for job in of_size(jobs, least, most)) for name, least, most in SIZES},
        "big_job_avg_wait_s": _mean(job.first_start_s - job.job.submit_s for job in of_size(jobs, BIG_JOB_GPUS + 1)),
        "preemptions": sum(job.preemptions for job in jobs),
        "max_preemptions_of_a_job": max((job.preemptions for job in jobs), default=0),
        "utilization": _over(sum(held.values()), outcome.gpus * makespan_s),
        "makespan_s": makespan_s,
        **_fairness(jobs),
        "lost_gpu_hours": sum(job.lost_gpu_s for job in jobs) / 3600,
        "cost": sum(gpu_s / 3600 * cost_per_gpu_hour.get(node, 0.0) for node, gpu_s in held.items()),
        "plans_per_s": _over(outcome.plans, sum(outcome.plan_seconds)),
        "jobs_per_s": _over(len(jobs), outcome.wall_s),
    }


def percentile(ordered: Sequence[float], percent: float) -> float:
    """Of values in ascending order; linear between the closest ranks; 0 of none."""
    if not ordered:
        return 0.0
    rank = (len(ordered) - 1) * percent / 100
    below = int(rank)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (rank - below)


def of_size(jobs: Iterable[JobOutcome], least: int, most: int | None = None) -> list[JobOutcome]:
    return [job for job in jobs if least <= job.job.gpus and (most is None or job.job.gpus <= most)]


def bounded_slowdown(job: JobOutcome) -> float:
    return max(1.0, job.jct_s / max(job.job.duration_s, SLOWDOWN_BOUND_S))


def jain(values: Sequence[float]) -> float:
    """1 where all are equal (or there are none), 1 / n where one has everything."""
    squares = len(values) * sum(value * value for value in values)
    return sum(values) ** 2 / squares if squares else 1.0


def _fairness(jobs: Sequence[JobOutcome]) -> dict[str, float]:
    by_tenant: dict[str, list[float]] = {}
    for job in jobs:
        by_tenant.setdefault(job.job.tenant, []).append(bounded_slowdown(job))
    means = [fmean(slowdowns) for slowdowns in by_tenant.values()]
    return {
        "worst_tenant_slowdown": _over(max(means, default=0.0), _mean(bounded_slowdown(job) for job in jobs)),
        "jain": jain(means),
        "tenants": len(means),
    }


def _held_gpu_s(jobs: Iterable[JobOutcome]) -> dict[str, float]:
    """GPU-seconds by node."""
    held: dict[str, float] = {}
    for job in jobs:
        for segment in job.segments:
            for node, gpus in segment.nodes:
                held[node] = held.get(node, 0.0) + gpus * (segment.end_s - segment.start_s)
    return held


def _mean(values: Iterable[float]) -> float:
    found = list(values)
    return fmean(found) if found else 0.0


def _over(part: float, whole: float) -> float:
    return part / whole if whole else 0.0
