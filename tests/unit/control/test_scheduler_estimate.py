"""What is thought of a job's run time before it has ended."""

from __future__ import annotations

import pytest

from orchestrator.control.scheduler.estimate import MEMORY, Estimates, remember
from orchestrator.control.scheduler.model import CPU_UNITS, Demand, Job


def job(tenant="t", gpus=1, limit_s=None):
    demand = Demand(num_workers=gpus, cpu_units=CPU_UNITS, gpus=1)
    return Job(id="j", demand=demand, submitted_s=0.0, queued_s=0.0, tenant=tenant, limit_s=limit_s)


def test_the_median_of_like_jobs_else_of_the_tenant_else_of_all():
    estimates = Estimates({("t", 1): (100.0, 300.0, 200.0), ("t", 8): (4000.0,), ("u", 2): (7.0,)})
    assert estimates.total_s(job()) == (200.0, 400.0)
    assert estimates.total_s(job(gpus=2)) == (200.0, 4000.0)  # of all four of the tenant
    assert estimates.total_s(job(tenant="v"))[0] == 200.0
    assert Estimates({}).total_s(job()) == (3600.0, 7200.0)


def test_a_long_tail_makes_the_p90_longer_than_twice_the_median():
    times = tuple(float(second) for second in [100] * 17 + [9000] * 3)
    assert Estimates({("t", 1): times}).total_s(job()) == (100.0, 9000.0)


@pytest.mark.parametrize(("limit_s", "expected"), [(1000.0, (200.0, 1000.0)), (50.0, (50.0, 50.0)), (0.0, (1.0, 1.0))])
def test_the_users_limit_holds(limit_s, expected):
    assert Estimates({("t", 1): (200.0,)}).total_s(job(limit_s=limit_s)) == expected


@pytest.mark.parametrize(("ran_s", "expected"), [(0.0, 400.0), (399.0, 400.0), (400.0, 800.0), (1700.0, 3200.0)])
def test_what_was_overrun_doubles(ran_s, expected):
    assert Estimates({("t", 1): (200.0,)}).ends_after_s(job(), ran_s) == expected


def test_only_the_last_of_each_kind_are_remembered():
    history = {}
    for second in range(MEMORY + 5):
        history = remember(history, "t", 1, float(second))
    history = remember(history, "t", 2, 1.0)
    assert history == {("t", 1): tuple(float(second) for second in range(5, MEMORY + 5)), ("t", 2): (1.0,)}
