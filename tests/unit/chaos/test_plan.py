"""The faults of a seed: the same for ever, each by itself, inside the steps that were asked for."""

from __future__ import annotations

import dataclasses

import pytest

from orchestrator.chaos.plan import ANSWERS, PHASES, SUPERVISOR_PHASES, Fault, Kind, plan
from orchestrator.config import load_job_spec
from orchestrator.runtime.link import Phase
from orchestrator.spec import ChaosSpec
from orchestrator.storage.faulty import KINDS

ALL = dict.fromkeys((kind.value for kind in Kind), 20)


def planned(world_size=4, **chaos):
    """For plans whose faults no cluster has together."""
    spec = load_job_spec(["workload=gpt", "training.max_steps=100"])
    asked = ChaosSpec(**{"seed": 42, "first_step": 10, "last_step": 60, **chaos})
    object.__setattr__(spec, "chaos", asked)
    return plan(spec, world_size)


def test_every_count_of_the_spec_is_a_kind_of_fault():
    assert set(ChaosSpec(**ALL).counts) == set(ALL)
    fields = {field.name for field in dataclasses.fields(ChaosSpec)}
    assert fields - set(ALL) == {"seed", "first_step", "last_step", "slow_s", "hide_s"}


def test_a_plan_has_as_many_of_each_kind_as_asked_for_between_its_steps():
    found = planned(**ALL)
    assert sorted(fault.name for fault in found) == sorted(f"{name}-{number}" for name in ALL for number in range(1, 21))
    assert {fault.step for fault in found} <= set(range(10, 61)) and found == sorted(found, key=lambda fault: (fault.step, fault.name))
    ranks = [fault for fault in found if not fault.kind.by_supervisor]
    assert {fault.phase for fault in ranks} == set(PHASES) <= {phase.name.lower() for phase in Phase}
    assert {fault.rank for fault in ranks if fault.kind is not Kind.KILL_RAYLET} == {0, 1, 2, 3}
    others = [fault for fault in found if fault.kind.by_supervisor or fault.kind is Kind.KILL_RAYLET]
    assert {fault.rank for fault in others} == {None}
    assert {fault.phase for fault in others if fault.kind.by_supervisor} == set(SUPERVISOR_PHASES)
    assert {fault.answer for fault in found if fault.kind is Kind.FAIL_STORE_CALL} == set(ANSWERS) <= set(KINDS)


def test_the_same_seed_gives_the_same_faults_and_another_gives_others():
    assert planned(**ALL) == planned(**ALL) != planned(**ALL, seed=43)


def test_what_else_befalls_a_job_moves_no_fault():
    few, many = planned(kill_rank=2), planned(kill_rank=3, hold_gil=5)
    assert len(few) == 2 and set(few) < set(many)


def test_nothing_is_planned_where_nothing_is_asked_for_and_the_last_step_is_the_jobs_own():
    assert planned(**dict.fromkeys(ALL, 0)) == []
    assert max(fault.step for fault in planned(kill_rank=400, first_step=1, last_step=0)) == 100


def test_faults_of_a_known_seed_read_like_this():
    assert [str(fault) for fault in planned(kill_rank=1, kill_raylet=1, kill_supervisor=1, fail_store_call=1)] == [
        "fail_store_call-1 by the supervisor at commit of step 28, delay of 3 from call 4 on",
        "kill_rank-1 by rank 0 at collective of step 34",
        "kill_supervisor-1 by the supervisor at commit of step 44",
        "kill_raylet-1 by a rank at optimizer of step 58",
    ]


@pytest.mark.parametrize("fault", planned(**ALL)[::20], ids=lambda fault: fault.name)
def test_a_fault_survives_its_way_to_a_rank(fault):
    assert Fault.from_dict(fault.to_dict()) == fault
