"""What was simulated, as people read it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from orchestrator.cli.screen import duration
from orchestrator.simulation.model import TraceJob, World


def _seconds(value: float) -> str:
    return f"{value:,.0f} s"


def _number(value: float) -> str:
    return f"{value:,.0f}"


def _ratio(value: float) -> str:
    return f"{value:.3f}"


def _percent(value: float) -> str:
    return f"{100 * value:.1f} %"


_ROWS: tuple[tuple[str, str, Callable[[float], str]], ...] = (
    ("avg_jct_s", "job completion time, mean", _seconds),
    ("p50_jct_s", "  median", _seconds),
    ("p99_jct_s", "  99th percentile", _seconds),
    ("avg_wait_s", "wait, all waits of a job, mean", _seconds),
    ("avg_wait_1_gpu_s", "  of jobs on 1 GPU", _seconds),
    ("avg_wait_2_to_8_gpus_s", "  on 2 to 8 GPUs", _seconds),
    ("avg_wait_9_to_64_gpus_s", "  on 9 to 64 GPUs", _seconds),
    ("avg_wait_over_64_gpus_s", "  on more than 64 GPUs", _seconds),
    ("max_total_wait_s", "  longest", _seconds),
    ("max_wait_s", "longest wait at one go", _seconds),
    ("big_job_avg_wait_s", "first wait on more than 8 GPUs, mean", _seconds),
    ("preemptions", "preemptions", _number),
    ("max_preemptions_of_a_job", "  of one job, most", _number),
    ("lost_gpu_hours", "lost GPU-hours", _number),
    ("utilization", "utilisation", _percent),
    ("makespan_s", "makespan", _seconds),
    ("worst_tenant_slowdown", "slowdown, worst tenant / all", _ratio),
    ("jain", "Jain's index of the tenants", _ratio),
    ("cost", "cost", lambda value: f"{value:,.2f}"),
    ("plans_per_s", "decisions in a second", _number),
    ("jobs_per_s", "jobs simulated in a second", _number),
)
_NOT_ALWAYS = {"cost", "big_job_avg_wait_s", *(key for key, _, _ in _ROWS if key.startswith("avg_wait_"))} - {"avg_wait_s"}
"""Left out where they are nought for every policy."""


def what(jobs: Sequence[TraceJob], world: World) -> str:
    """One line: the jobs, the cluster, and how much of it they ask for."""
    gpus = sum(shape.nodes * shape.gpus_per_node for shape in world.shapes)
    span_s = max(job.submit_s for job in jobs)
    asked = sum(job.gpus * job.duration_s for job in jobs)
    load = f"; load {asked / (gpus * span_s):.2f}" if span_s else ""
    nodes = " + ".join(f"{shape.nodes} x {shape.gpus_per_node}" for shape in world.shapes)
    span = f"{span_s / 86_400:.1f} days" if span_s > 2 * 86_400 else duration(span_s)
    return f"{len(jobs):,} job{'' if len(jobs) == 1 else 's'}, submitted within {span}, on {gpus:,} GPUs ({nodes}){load}"


def shown(tables: Mapping[str, Mapping[str, float]]) -> str:
    """A row for each figure, a column for each policy."""
    first = next(iter(tables.values()))
    rows = [["", *tables]]
    for key, label, words in _ROWS:
        if key in _NOT_ALWAYS and not any(table[key] for table in tables.values()):
            continue
        rows.append([label, *(words(table[key]) for table in tables.values())])
        if key == "avg_jct_s" and len(tables) > 1 and first[key]:
            rows.append([f"  / that of {next(iter(tables))}", *(_ratio(table[key] / first[key]) for table in tables.values())])
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join([row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]).rstrip()
        for row in rows
    )  # fmt: skip
