"""The pictures: what is drawn in them, and that they are written."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.simulation.model import JobOutcome, Outcome, Segment, TraceJob
from orchestrator.simulation.report import binned, draw_big_jobs, draw_waits, largest, write_plots


def job(number: int, gpus: int, *stays: tuple[float, float]) -> JobOutcome:
    segments = tuple(
        Segment(start_s=start, end_s=end, nodes=(("n0", gpus),), end="done" if (start, end) == stays[-1] else "preempted")
        for start, end in stays
    )
    ran_s = sum(end - start for start, end in stays)
    waited_s = stays[-1][1] - ran_s
    return JobOutcome(
        job=TraceJob(id=f"j{number}", submit_s=0, gpus=gpus, duration_s=ran_s), first_start_s=stays[0][0], end_s=stays[-1][1],
        segments=segments, waited_s=waited_s, longest_wait_s=waited_s, preemptions=len(stays) - 1,
    )  # fmt: skip


def outcome(name: str = "p", jobs: tuple[JobOutcome, ...] = ()) -> Outcome:
    return Outcome(policy=name, gpus=32, jobs=jobs, timeline=((0.0, 8, 2), (10.0, 24, 0), (40.0, 0, 0)))


JOBS = (job(0, 16, (0, 20), (30, 40)), job(1, 9, (5, 25)), job(2, 1, (0, 40)))


def pixels(path: Path) -> tuple[int, int]:
    """Width and height, as the header of the PNG has them."""
    header = path.read_bytes()[:24]
    assert header[:8] == b"\x89PNG\r\n\x1a\n"
    return int.from_bytes(header[16:20], "big"), int.from_bytes(header[20:24], "big")


@pytest.mark.parametrize("outcomes", [[outcome(jobs=JOBS)], [outcome("a", JOBS), outcome("b", JOBS)], [outcome()]])
def test_four_pictures_are_written(outcomes: list[Outcome], tmp_path: Path) -> None:
    paths = write_plots(outcomes, tmp_path)
    assert [path.name for path in paths] == ["utilisation.png", "waits.png", "queue.png", "big_jobs.png"]
    assert all(width >= 1000 and height >= 200 for width, height in map(pixels, paths))


def test_means_over_time_are_exact() -> None:
    assert binned(outcome().timeline, 1, 40.0, 4) == [8, 24, 24, 24]
    assert binned(outcome().timeline, 2, 40.0, 2) == [1, 0]
    assert binned((), 1, 40.0, 2) == [0, 0]
    assert binned(((0.0, 1, 1),), 1, 0.0, 2) == [0, 0]


@given(st.lists(st.tuples(st.floats(0, 100), st.integers(0, 50), st.just(0)), min_size=1, max_size=20, unique_by=lambda point: point[0]))
def test_binning_keeps_the_area(points: list[tuple[float, int, int]]) -> None:
    timeline = sorted(points)
    end_s = timeline[-1][0] + 1.0
    edges = [time_s for time_s, *_ in timeline] + [end_s]
    area = sum(point[1] * (after - point[0]) for point, after in zip(timeline, edges[1:], strict=True))
    assert sum(binned(timeline, 1, end_s, 7)) * end_s / 7 == pytest.approx(area)


def test_the_share_of_jobs_by_their_wait() -> None:
    (axes,) = draw_waits([outcome(jobs=JOBS)]).axes
    (line,) = axes.lines
    assert list(line.get_xdata()) == [1.0, 5.0, 10.0, 10.0]  # no wait stands at 1 s: the axis is logarithmic
    assert list(line.get_ydata()) == pytest.approx([100 / 3, 200 / 3, 100, 100])


def test_of_the_big_jobs_the_largest_are_drawn() -> None:
    assert list(largest(JOBS, 9)) == ["j0", "j1"]
    assert list(largest(tuple(job(number, 9 + number, (0, 10)) for number in range(20)), 3)) == ["j19", "j18", "j17"]


def test_each_policy_has_a_panel_with_its_stays_and_preemptions() -> None:
    panels = draw_big_jobs([outcome("a", JOBS), outcome("b", JOBS)]).axes[:2]
    assert [axes.get_title(loc="left") for axes in panels] == ["a", "b"]
    bars = panels[0].collections[1::2]  # each behind the grey line of its wait
    stays = [[path.get_extents().intervalx.tolist() for path in found.get_paths()] for found in bars]
    unit_s = 60.0
    assert [[[edge * unit_s for edge in stay] for stay in row] for row in stays] == [
        [pytest.approx([0, 20]), pytest.approx([30, 40])], [pytest.approx([5, 25])],
    ]  # fmt: skip
    ticks = [line.get_xdata() for line in panels[0].lines if line.get_marker() == "|"]
    assert [[time * unit_s for time in times] for times in ticks] == [[20.0], []]
