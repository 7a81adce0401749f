"""The table of a simulation, from outcomes made by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.simulation.metrics import bounded_slowdown, jain, percentile, table
from orchestrator.simulation.model import JobOutcome, Outcome, Segment, TraceJob


def job(name: str, submit_s: float, gpus: int, *stays: tuple[float, float], tenant: str = "", lost_gpu_s: float = 0.0) -> JobOutcome:
    """A job that ran without loss from the first to the second time of each of `stays`, on nodes n0, n1 ... of 8 GPUs."""
    nodes = tuple((f"n{number}", min(8, gpus - 8 * number)) for number in range((gpus + 7) // 8))
    segments = tuple(
        Segment(start_s=start, end_s=end, nodes=nodes, end="done" if (start, end) == stays[-1] else "preempted") for start, end in stays
    )
    waits = [start - before for (start, _), before in zip(stays, [submit_s, *(end for _, end in stays)], strict=False)]
    return JobOutcome(
        job=TraceJob(id=name, submit_s=submit_s, gpus=gpus, duration_s=sum(end - start for start, end in stays), tenant=tenant),
        first_start_s=stays[0][0], end_s=stays[-1][1], segments=segments, waited_s=sum(waits), longest_wait_s=max(waits),
        preemptions=len(stays) - 1, lost_gpu_s=lost_gpu_s,
    )  # fmt: skip


def outcome(*jobs: JobOutcome, gpus: int = 16, **more: object) -> Outcome:
    return Outcome(policy="p", gpus=gpus, jobs=jobs, **more)


def test_the_whole_table_of_three_jobs() -> None:
    jobs = (
        job("a", 0, 16, (0, 100), tenant="x"),
        job("b", 50, 1, (100, 150), (250, 300), tenant="x", lost_gpu_s=7200),
        job("c", 60, 9, (150, 250), tenant="y"),
    )
    found = table(outcome(*jobs, plans=6, plan_seconds=(0.25, 0.25), wall_s=0.5), {"n0": 3.6, "n1": 36.0})
    slowdowns = (1.0, 2.5, 1.9)
    assert found == pytest.approx(
        {
            "jobs": 3, "tenants": 2, "avg_jct_s": (100 + 250 + 190) / 3, "p50_jct_s": 190, "p99_jct_s": 190 + 0.98 * 60,
            "avg_wait_s": (0 + 150 + 90) / 3, "max_wait_s": 100, "max_first_wait_s": 90, "max_total_wait_s": 150,
            "avg_wait_1_gpu_s": 150, "avg_wait_2_to_8_gpus_s": 0, "avg_wait_9_to_64_gpus_s": 45, "avg_wait_over_64_gpus_s": 0,
            "big_job_avg_wait_s": 45, "preemptions": 1, "max_preemptions_of_a_job": 1,
            "utilization": (1600 + 100 + 900) / (16 * 300), "makespan_s": 300,
            "worst_tenant_slowdown": 1.9 / (sum(slowdowns) / 3), "jain": (1.75 + 1.9) ** 2 / (2 * (1.75**2 + 1.9**2)),
            "lost_gpu_hours": 2, "cost": (1700 * 3.6 + 900 * 36.0) / 3600, "plans_per_s": 12, "jobs_per_s": 6,
        }
    )  # fmt: skip


def test_a_table_without_jobs_is_all_nought_but_the_fairness_of_none() -> None:
    found = table(outcome(), {})
    assert found.pop("jain") == 1.0
    assert set(found.values()) == {0}


def test_the_wait_of_big_jobs_is_the_first_one_alone() -> None:
    again = job("a", 0, 9, (10, 20), (80, 90))
    assert table(outcome(again), {})["big_job_avg_wait_s"] == 10
    assert table(outcome(again), {})["avg_wait_9_to_64_gpus_s"] == 70


def test_a_short_job_is_no_slower_than_its_bound() -> None:
    assert bounded_slowdown(job("a", 0, 1, (0, 1))) == 1.0
    assert bounded_slowdown(job("a", 0, 1, (99, 100))) == 10.0
    assert bounded_slowdown(job("a", 0, 1, (100, 200))) == 2.0


@given(st.lists(st.floats(0, 1e9), min_size=1, max_size=30), st.floats(0, 100))
def test_percentiles_are_those_of_numpy(values: list[float], percent: float) -> None:
    assert percentile(sorted(values), percent) == pytest.approx(float(np.percentile(values, percent)), abs=1e-6)


@given(st.lists(st.floats(0.1, 1e6), min_size=1, max_size=30))
def test_jains_index_lies_between_one_nth_and_1(values: list[float]) -> None:
    assert 1 / len(values) - 1e-9 <= jain(values) <= 1 + 1e-9
    assert jain([values[0]] * len(values)) == pytest.approx(1)


def test_one_that_has_all_is_as_unfair_as_can_be() -> None:
    assert jain([5.0, 0.0, 0.0, 0.0]) == 0.25
