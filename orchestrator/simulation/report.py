"""Pictures of what was simulated: `utilisation.png`, `waits.png`, `queue.png` and `big_jobs.png`, of one policy or several in the same axes."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from orchestrator.simulation.metrics import BIG_JOB_GPUS, of_size
from orchestrator.simulation.model import JobOutcome, Outcome

BINS = 180
"""Of the time axis."""
GANTT_ROWS = 40
"""Of the big jobs the largest by GPU-seconds are drawn."""
_COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7f7f7f", "#000000")
"""Told apart also by the colour-blind (Okabe and Ito, 2008)."""
_WAIT_TICKS = ((1, "1 s"), (10, "10 s"), (60, "1 min"), (600, "10 min"), (3600, "1 h"), (6 * 3600, "6 h"), (86_400, "1 d"), (604_800, "1 w"))


def write_plots(outcomes: Sequence[Outcome], folder: Path) -> list[Path]:
    """Make the folder and the four files; returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
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
    return [(after - before) / width if width else 0.0 for before, after in zip(sums, sums[1:], strict=False)]


def draw_utilisation(outcomes: Sequence[Outcome]) -> Any:
    figure, axes = _figure("GPUs in use", "share of all GPUs")
    for outcome, color in zip(outcomes, _colors(), strict=False):
        _over_time(axes, outcome, 1, 100 / outcome.gpus, color, filled=len(outcomes) == 1)
    axes.set_ylim(0, 103)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0f} %")
    return _finished(figure, axes, outcomes)


def draw_queue(outcomes: Sequence[Outcome]) -> Any:
    figure, axes = _figure("Jobs that wait", "jobs")
    for outcome, color in zip(outcomes, _colors(), strict=False):
        _over_time(axes, outcome, 2, 1, color, filled=len(outcomes) == 1)
    axes.set_ylim(bottom=0)
    return _finished(figure, axes, outcomes)


def draw_waits(outcomes: Sequence[Outcome]) -> Any:
    figure, axes = _figure("How long jobs wait, in all their waits together", "share of the jobs that wait no longer")
    longest = 1.0
    for outcome, color in zip(outcomes, _colors(), strict=False):
        waits = sorted(job.waited_s for job in outcome.jobs)
        longest = max([longest, *waits[-1:]])
        shares = [100 * (number + 1) / len(waits) for number in range(len(waits))]
        axes.plot([max(wait, 1.0) for wait in waits], shares, color=color, linewidth=1.8, label=outcome.policy, drawstyle="steps-post")
    axes.set_xscale("log")
    axes.set_xlim(1, longest * 1.3)
    ticks = [(second, label) for second, label in _WAIT_TICKS if second <= longest * 1.3]
    axes.set_xticks([second for second, _ in ticks], [label for _, label in ticks])
    axes.minorticks_off()
    axes.set_ylim(top=101)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0f} %")
    axes.set_xlabel("wait")
    return _finished(figure, axes, outcomes)


def draw_big_jobs(outcomes: Sequence[Outcome]) -> Any:
    """A panel for each policy: grey while a job waits, coloured by its GPUs while it runs, a red tick where it was preempted."""
    from matplotlib import colormaps
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import LogNorm
    from matplotlib.figure import Figure

    chosen = largest(outcomes[0].jobs)
    unit_s, unit = _unit(max(_end_s(outcome) for outcome in outcomes))
    norm = LogNorm(vmin=BIG_JOB_GPUS, vmax=max([BIG_JOB_GPUS * 2, *(job.gpus for job in chosen.values())]))
    shades = colormaps["viridis_r"]
    height = 1.2 + (1.0 + 0.11 * max(len(chosen), 8)) * len(outcomes)
    figure = Figure(figsize=(11, height), layout="constrained")
    panels = figure.subplots(len(outcomes), 1, sharex=True, squeeze=False)[:, 0]
    for axes, outcome in zip(panels, outcomes, strict=True):
        _gantt(axes, [job for job in outcome.jobs if job.job.id in chosen], unit_s, lambda gpus: shades(norm(gpus)))
        axes.set_title(outcome.policy, loc="left", fontsize=10, fontweight="bold")
    panels[-1].set_xlabel(unit)
    what = f"The {len(chosen)} largest jobs on more than {BIG_JOB_GPUS} GPUs" if chosen else f"No job on more than {BIG_JOB_GPUS} GPUs"
    figure.suptitle(f"{what}: grey while they wait, red where they were preempted", fontsize=11)
    bar = figure.colorbar(ScalarMappable(norm, shades), ax=list(panels), pad=0.01, aspect=40, fraction=0.03)
    ticks = [2**power for power in range(3, 14) if norm.vmin <= 2**power <= norm.vmax]
    bar.set_ticks(ticks, labels=[str(tick) for tick in ticks], minor=False)
    bar.ax.minorticks_off()
    bar.set_label("GPUs")
    return figure


def _gantt(axes: Any, jobs: Sequence[JobOutcome], unit_s: float, shade: Any) -> None:
    """A row for each job, in the order of submission, the first at the top."""
    for row, job in enumerate(sorted(jobs, key=lambda job: (job.job.submit_s, job.job.id))):
        axes.plot([job.job.submit_s / unit_s, job.end_s / unit_s], [row, row], color="#c8c8c8", linewidth=1.2, zorder=1, solid_capstyle="butt")
        stays = [(segment.start_s / unit_s, (segment.end_s - segment.start_s) / unit_s) for segment in job.segments]
        axes.broken_barh(stays, (row - 0.4, 0.8), facecolors=shade(job.job.gpus), zorder=2)
        left = [segment.end_s / unit_s for segment in job.segments if segment.end == "preempted"]
        axes.plot(left, [row] * len(left), "|", color="#d62728", markersize=6, markeredgewidth=1.1, zorder=3)
    axes.set_ylim(max(len(jobs), 1) - 0.4, -0.6)
    axes.set_yticks([])
    axes.set_ylabel("jobs by submission", fontsize=9)
    _plain(axes)


def largest(jobs: Sequence[JobOutcome]) -> dict[str, Any]:
    """The trace's jobs by their ids."""
    big = sorted(of_size(jobs, BIG_JOB_GPUS + 1), key=lambda job: (-job.job.gpus * job.job.duration_s, job.job.id))
    return {job.job.id: job.job for job in big[:GANTT_ROWS]}


def _over_time(axes: Any, outcome: Outcome, column: int, factor: float, color: str, filled: bool) -> None:
    end_s = _end_s(outcome)
    unit_s, unit = _unit(end_s)
    values = [value * factor for value in binned(outcome.timeline, column, end_s, BINS)]
    edges = [end_s * number / BINS / unit_s for number in range(BINS + 1)]
    axes.stairs(values, edges, color=color, linewidth=1.4, label=outcome.policy)
    if filled:
        axes.stairs(values, edges, color=color, alpha=0.2, fill=True)
    axes.set_xlabel(unit)
    axes.set_xlim(left=0)


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
        figure.legend(loc="outside right upper", frameon=False)
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
