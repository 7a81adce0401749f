"""What tenants and users may have, and what they deserve."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from orchestrator.control.scheduler.admit import Accounts, Tally, ranks_change_at, shares, tenant_ranks, used_by_tenant
from orchestrator.control.scheduler.model import CPU_UNITS, Demand, Job, Policy, Run, Tenant, Usage


def job(name, gpus=1, tenant="t", user="u"):
    demand = Demand(num_workers=gpus, cpu_units=CPU_UNITS, gpus=1)
    return Job(id=name, demand=demand, submitted_s=0.0, queued_s=0.0, tenant=tenant, user=user)


def run(name, gpus=1, **more):
    return Run(job=job(name, gpus), placement=(("n", gpus),), started_s=0.0, **more)


def policy(**tenants):
    return Policy(mode="preemptive", tenants=tenants)


def test_a_quota_is_of_all_that_a_tenant_holds_and_the_reason_has_the_numbers():
    accounts = Accounts(policy(t=Tenant(quota=8)), Tally([run("r", 6)]))
    assert accounts.refusal(job("x", 2), 2) == ""
    assert accounts.refusal(job("x", 3), 3) == "needs 3 of the quota of t: 6 of 8 are in use"
    assert accounts.refusal(job("x", 99, tenant="other"), 99) == ""


def test_so_many_jobs_of_a_user():
    accounts = Accounts(policy(t=Tenant(jobs_per_user=1)), Tally([run("r")]))
    assert accounts.refusal(job("x"), 1) == "u runs 1 job, the most that the tenant allows a user"
    assert accounts.refusal(job("x", user="v"), 1) == ""


def test_who_leaves_counts_for_the_quota_until_it_has_left_but_not_for_the_share():
    accounts = Accounts(policy(t=Tenant(quota=8)), Tally([run("r", 6, leaving=True)]))
    assert accounts.held == {"t": 0}
    assert accounts.refusal(job("x", 3), 3)


@pytest.mark.parametrize(
    ("tenants", "wanted", "expected"),
    [
        ({}, {"a": 100, "b": 100}, {"a": 50, "b": 50}),
        ({"a": Tenant(weight=3.0)}, {"a": 100, "b": 100}, {"a": 75, "b": 25}),
        ({"a": Tenant(weight=3.0)}, {"a": 10, "b": 100}, {"a": 10, "b": 90}),
        ({}, {"a": 10, "b": 100, "c": 100}, {"a": 10, "b": 45, "c": 45}),
        ({"b": Tenant(quota=20)}, {"a": 100, "b": 100}, {"a": 80, "b": 20}),
        ({}, {"a": 10, "b": 20}, {"a": 10, "b": 20}),
    ],
)
def test_shares_by_weight_and_what_is_left_over_goes_on(tenants, wanted, expected):
    assert shares(policy(**tenants), 100, wanted) == pytest.approx(expected)


def test_the_tenant_that_used_the_least_for_its_weight_comes_first():
    heavy = policy(a=Tenant(weight=4.0))
    used = used_by_tenant(heavy, Usage(charged={"a": 300.0, "b": 100.0}), [], ["a", "b"], 0.0)
    assert tenant_ranks(used) == {"a": 0, "b": 1}


def test_what_runs_is_charged_since_it_was_charged_last_or_started():
    rules = Policy(mode="preemptive", usage_half_life_s=1e9)
    usage = Usage(charged={"t": 50.0}, charged_at_s=100.0)
    early, late = run("early", 2), replace(run("late", 3), started_s=190.0)
    assert used_by_tenant(rules, usage, [early, late], ["t"], 200.0)["t"] == pytest.approx(50.0 + 2 * 100.0 + 3 * 10.0)


def test_when_two_tenants_change_places_is_known_before():
    rules = Policy(mode="preemptive", usage_half_life_s=1000.0)
    usage, held = Usage(charged={"a": 1000.0, "b": 5000.0}), {"a": 8, "b": 1}
    runs = [Run(job=job(name, gpus, tenant=name), placement=(("n", gpus),), started_s=0.0) for name, gpus in held.items()]

    def used(now):
        return used_by_tenant(rules, usage, runs, ["a", "b"], now)

    flip_s = ranks_change_at(rules, used(0.0), held, 0.0)
    assert 0.0 < flip_s < math.inf and ranks_change_at(rules, used(100.0), held, 100.0) == pytest.approx(flip_s)
    assert tenant_ranks(used(flip_s - 1.0)) == {"a": 0, "b": 1}
    assert tenant_ranks(used(flip_s + 1.0)) == {"a": 1, "b": 0}
    assert ranks_change_at(rules, used(0.0), {"a": 1, "b": 8}, 0.0) == math.inf


@pytest.mark.parametrize("now", [0.0, 100.0, 1e9])
def test_who_has_used_the_same_changes_places_at_once_when_one_starts_something_and_then_no_more(now):
    rules, started = Policy(mode="preemptive"), Run(job=job("x", 8, tenant="a"), placement=(("n", 8),), started_s=now)
    soon_s = ranks_change_at(rules, {"a": 0.0, "b": 0.0}, {"a": 8}, now)
    assert now < soon_s < now + 0.01
    used = used_by_tenant(rules, Usage(charged_at_s=now), [started], ["a", "b"], soon_s)
    assert tenant_ranks(used) == {"b": 0, "a": 1} and ranks_change_at(rules, used, {"a": 8}, soon_s) == math.inf
