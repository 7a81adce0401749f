"""Pictures of what was simulated under one policy, or under several in the same axes.

`utilisation.png`, `queue.png`, `waits.png`, and `big_jobs.png` with a panel for each policy.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Sequence
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

from orchestrator.simulation.metrics import BIG_JOB_GPUS, of_size
from orchestrator.simulation.model import JobOutcome, Outcome, TraceJob

BINS = 180
"""Of the time axis."""
GANTT_ROWS = 48
"""Of the big jobs the largest by GPU-seconds are drawn: so many, of several policies so many panels together, but at least 16 in each."""
_COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7f7f7f", "#000000")
"""Told apart also by the colour-blind (Okabe and Ito, 2008)."""
_WAIT_TICKS = {1: "1 s", 10: "10 s", 60: "1 min", 600: "10 min", 3600: "1 h", 21_600: "6 h", 86_400: "1 d", 604_800: "1 w"}


def write_plots(outcomes: Sequence[Outcome], folder: Path) -> list[Path]:
    """Four files in a folder that is there; returns their paths."""
    drawn = {"utilisation": draw_utilisation, "waits": draw_waits, "queue": draw_queue, "big_jobs": draw_big_jobs}
    paths = []
    for name, draw in drawn.items():
        paths.append(folder / f"{name}.png")
        draw(outcomes).savefig(paths[-1], dpi=120)
    return paths


def binned(timeline: Sequence[tuple[float, int, int]], column: int, end_s: float, bins: int) -> list[float]:
    """Mean over time of a column of the timeline, in each of `bins` equal parts of the time from 0 to `end_s`."""
    times = [point[0] for point in timeline]
    integral = [0.0]
    for (start, *_), (end, *_), value in zip(timeline, timeline[1:], (point[column] for point in timeline), strict=False):
        integral.append(integral[-1] + value * (end - start))

    def until(time_s: float) -> float:
        index = bisect_right(times, time_s) - 1
        return 0.0 if index < 0 else integral[index] + timeline[index][column] * (time_s - times[index])

    edges = [end_s * number / bins for number in range(bins + 1)]
    sums = [until(edge) for edge in edges] if timeline else [0.0] * (bins + 1)
    width = end_s / bins
    return [(after - before) / width if width else 0.0 for before, after in pairwise(sums)]


def draw_utilisation(outcomes: Sequence[Outcome]) -> Any:
    figure, axes = _figure("GPUs in use", "share of all GPUs")
    _over_time(axes, outcomes, 1)
    axes.set_ylim(0, 103)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0f} %")
    return _finished(figure, axes, outcomes)


def draw_queue(outcomes: Sequence[Outcome]) -> Any:
    figure, axes = _figure("Jobs that wait", "jobs")
    _over_time(axes, outcomes, 2)
    axes.set_ylim(bottom=0)
    return _finished(figure, axes, outcomes)


def draw_waits(outcomes: Sequence[Outcome]) -> Any:
    """No wait and all below a second stand at a second, because the axis is logarithmic."""
    figure, axes = _figure("How long jobs wait, in all their waits together", "share of the jobs that wait no longer")
    longest = max([10.0, *(job.waited_s for outcome in outcomes for job in outcome.jobs)])
    for outcome, color in zip(outcomes, _colors(), strict=False):
        counts = Counter(max(job.waited_s, 1.0) for job in outcome.jobs)
        waits = sorted(counts)
        shares = [100 * count / len(outcome.jobs) for count in accumulate(counts[wait] for wait in waits)]
        ends = ([longest], shares[-1:]) if waits else ([], [])
        axes.step([*waits, *ends[0]], [*shares, *ends[1]], where="post", color=color, linewidth=1.8, label=outcome.policy)
    axes.set_xscale("log")
    axes.set_xlim(1, longest * 1.1)
    ticks = {seconds: label for seconds, label in _WAIT_TICKS.items() if seconds <= longest * 1.1}
    axes.set_xticks(list(ticks), list(ticks.values()))
    axes.minorticks_off()
    axes.set_ylim(0, 101)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0f} %")
    axes.set_xlabel("wait")
    return _finished(figure, axes, outcomes)


def draw_big_jobs(outcomes: Sequence[Outcome]) -> Any:
    """A panel for each policy: grey while a job waits, coloured by its GPUs while it runs, a red tick where it was preempted."""
    from matplotlib import colormaps
    from matplotlib.colors import LogNorm
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    chosen = largest(outcomes[0].jobs, max(16, GANTT_ROWS // len(outcomes)))
    unit_s, unit = _unit(max(_end_s(outcome) for outcome in outcomes))
    sizes = sorted({job.gpus for job in chosen.values()})
    norm, colors = LogNorm(vmin=BIG_JOB_GPUS, vmax=max([BIG_JOB_GPUS * 2, *sizes])), colormaps["viridis_r"]

    def shade(gpus: int) -> Any:
        return colors(0.15 + 0.65 * norm(gpus))

    height = 1.2 + (0.5 + 0.1 * max(len(chosen), 10)) * len(outcomes)
    figure = Figure(figsize=(11, height), layout="constrained")
    panels = figure.subplots(len(outcomes), 1, sharex=True, squeeze=False)[:, 0]
    for axes, outcome in zip(panels, outcomes, strict=True):
        _gantt(axes, [job for job in outcome.jobs if job.job.id in chosen], unit_s, shade)
        axes.set_title(outcome.policy, loc="left", fontsize=10, fontweight="bold")
    panels[-1].set_xlabel(unit)
    what = f"The {len(chosen)} largest jobs on more than {BIG_JOB_GPUS} GPUs" if chosen else f"No job on more than {BIG_JOB_GPUS} GPUs"
    figure.suptitle(f"{what}: grey while they wait, red where they were preempted", fontsize=11, x=0.01, ha="left")
    named = sizes[:: -(-len(sizes) // 8) or 1]
    handles = [Patch(color=shade(size), label=f"{size} GPUs") for size in named]
    figure.legend(handles=handles, loc="outside lower left", ncols=8, frameon=False, fontsize=9)
    return figure


def _gantt(axes: Any, jobs: Sequence[JobOutcome], unit_s: float, shade: Any) -> None:
    """A row for each job, in the order of submission, the first at the top."""
    for row, job in enumerate(sorted(jobs, key=lambda job: (job.job.submit_s, job.job.id))):
        axes.hlines(row, job.job.submit_s / unit_s, job.end_s / unit_s, color="#c8c8c8", linewidth=1.2, zorder=1)
        stays = [(segment.start_s / unit_s, (segment.end_s - segment.start_s) / unit_s) for segment in job.segments]
        axes.broken_barh(stays, (row - 0.4, 0.8), facecolors=shade(job.job.gpus), zorder=2)
        left = [segment.end_s / unit_s for segment in job.segments if segment.end == "preempted"]
        axes.plot(left, [row] * len(left), "|", color="#d62728", markersize=6, markeredgewidth=1.1, zorder=3)
    axes.set_ylim(max(len(jobs), 1) - 0.4, -0.6)
    axes.set_yticks([])
    axes.set_ylabel("jobs by submission", fontsize=9)
    _plain(axes)


def largest(jobs: Sequence[JobOutcome], count: int) -> dict[str, TraceJob]:
    """Of the big jobs those with the most GPU-seconds, by their ids."""
    big = sorted(of_size(jobs, BIG_JOB_GPUS + 1), key=lambda job: (-job.job.gpus * job.job.duration_s, job.job.id))
    return {job.job.id: job.job for job in big[:count]}


def _over_time(axes: Any, outcomes: Sequence[Outcome], column: int) -> None:
    """A column of the timelines; GPUs in per cent of all."""
    end_s = max(_end_s(outcome) for outcome in outcomes)
    unit_s, unit = _unit(end_s)
    edges = [end_s * number / BINS / unit_s for number in range(BINS + 1)]
    for outcome, color in zip(outcomes, _colors(), strict=False):
        factor = 100 / outcome.gpus if column == 1 else 1
        values = [factor * value for value in binned(outcome.timeline, column, end_s, BINS)]
        axes.stairs(values, edges, color=color, linewidth=1.4, label=outcome.policy)
        if len(outcomes) == 1:
            axes.stairs(values, edges, color=color, alpha=0.2, fill=True)
    axes.set_xlabel(unit)
    axes.set_xlim(0, max(edges[-1], 1e-9))


def _figure(title: str, ylabel: str) -> tuple[Any, Any]:
    # Imported here: matplotlib takes half a second, and only who wants pictures needs it.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4.6), layout="constrained")
    axes = figure.add_subplot(ylabel=ylabel)
    axes.set_title(title, loc="left", fontweight="bold")
    return figure, axes


def _finished(figure: Any, axes: Any, outcomes: Sequence[Outcome]) -> Any:
    _plain(axes)
    if len(outcomes) > 1:
        figure.legend(loc="outside upper left", ncols=len(outcomes), frameon=False, fontsize=9)
    else:
        axes.set_title(outcomes[0].policy, loc="right", color="#555555")
    return figure


def _plain(axes: Any) -> None:
    axes.grid(alpha=0.25)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def _colors() -> list[str]:
    return list(_COLORS) * 4


def _end_s(outcome: Outcome) -> float:
    return max((job.end_s for job in outcome.jobs), default=0.0)


def _unit(end_s: float) -> tuple[float, str]:
    """(seconds, name) of the time axis."""
    return (86_400.0, "days") if end_s > 4 * 86_400 else (3600.0, "hours") if end_s > 4 * 3600 else (60.0, "minutes")
