"""What a start waits for, by Ray's answers."""

from __future__ import annotations

import dataclasses

import pytest
from patience import LIMIT_S
from ray.exceptions import ActorDiedError, GetTimeoutError

from orchestrator.control.nodes import ray_groups
from orchestrator.control.nodes.ray_groups import RayGroups
from orchestrator.control.nodes.threads import Threads
from orchestrator.job import Job, JobState
from orchestrator.paths import Home
from orchestrator.spec import DataSpec, JobSpec, ModelSpec, TrainingSpec, WorkloadSpec

SPEC = JobSpec(
    workload=WorkloadSpec(name="tiny", entrypoint="tiny:Tiny"), model=ModelSpec(name="m"), data=DataSpec(name="d"),
    training=TrainingSpec(max_steps=10, global_batch_size=8, micro_batch_size=2),
)  # fmt: skip
JOB = Job(id="a", spec=SPEC, placement=(("node-1", 2), ("node-2", 1)))


@pytest.fixture
def start(tmp_path, monkeypatch):
    """`start(has_place, error)`: what the start answers, and with how many ranks in each bundle the supervisor was to begin."""
    groups = RayGroups(Home(tmp_path), Threads())

    def started(has_place, error=None):
        ranks = []

        def begin(job_id, run, spec, home, ranks_per_bundle, *_rest, **_named):
            ranks.append(ranks_per_bundle)
            if error is not None:
                raise error

        monkeypatch.setattr(ray_groups.place, "reserve", lambda *_: has_place)
        monkeypatch.setattr(ray_groups, "start_supervisor", begin)
        return groups.start(JOB).result(LIMIT_S), ranks

    return started


def test_what_ray_has_yet_to_do_is_asked_for_again(start):
    assert start(has_place=False) == ("reserve its place", [])
    assert start(has_place=True, error=GetTimeoutError("not ready")) == ("start its supervisor", [[2, 1]])
    assert start(has_place=True) == ("", [[2, 1]])


def test_a_start_that_a_controller_before_this_one_began_is_gone_on_with_if_its_supervisor_is_silent(tmp_path, monkeypatch):
    def silent(*_):
        raise GetTimeoutError("not ready")

    monkeypatch.setattr(ray_groups, "find_supervisor", lambda *_: object())
    monkeypatch.setattr(ray_groups, "_ask", silent)
    groups = RayGroups(Home(tmp_path), Threads())
    assert groups.find(dataclasses.replace(JOB, state=JobState.STARTING)).result(LIMIT_S) is False
    with pytest.raises(GetTimeoutError):
        groups.find(dataclasses.replace(JOB, state=JobState.RUNNING)).result(LIMIT_S)


def test_a_supervisor_that_dies_as_it_begins_is_an_error(start):
    with pytest.raises(ActorDiedError):
        start(has_place=True, error=ActorDiedError())
