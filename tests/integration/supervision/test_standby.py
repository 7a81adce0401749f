"""Actors that stand by on a real Ray cluster: taken by one job, ended with it, and missed by none."""

from __future__ import annotations

import pytest
from patience import wait_until
from supervision_box import Box, calm_history, double_spec

from orchestrator.job import EndReason
from orchestrator.spec import RecoverySpec


@pytest.fixture(scope="module")
def box():
    it = Box()
    yield it
    it.close()


@pytest.fixture
def standby(box):
    """(names of a supervisor and an agent that are up, the pool that they are from)."""
    import ray

    from orchestrator.supervision.standby import Standby

    pool, node = Standby(box.home), ray.nodes()[0]["NodeID"]
    assert pool.lacks([node])
    pool.fill([node], used=())
    assert not pool.lacks([node])
    names = pool.take([node], agents=True)
    assert all(names) and pool.lacks([node])
    assert pool.take([node], agents=True) == ("", "")
    pool.put_back([node], names)
    assert pool.take([node], agents=True) == names
    return names


def living() -> set[str]:
    from orchestrator.supervision.place import actor_names

    return set(actor_names())


def test_a_job_runs_by_what_stands_by_and_ends_it(box, standby):
    job = box.start(double_spec(box.url, step_s=0.02), standby=standby)
    job.wait_step(5)
    assert living() == set(standby), "it started nothing of its own"
    assert job.wait_ended().end_reason is EndReason.COMPLETED
    assert job.history() == calm_history(40)
    job.release()
    wait_until(lambda: not living(), "the end of both")
    assert not list(box.home.supervisor("any").parent.iterdir())


@pytest.mark.parametrize("lost", ["ray::Supervisor", "ray::Agent"])
def test_what_stood_by_and_dies_is_replaced_and_the_curve_is_the_calm_one(box, standby, lost):
    gate = box.root / f"{lost}-is-killed"
    holds = {"rank": 0, "step": 20, "how": "wait", "until": str(gate), "epochs": 1}
    recovery = RecoverySpec(backoff_s=0.05, hang_timeout_s=0)
    job = box.start(double_spec(box.url, faults=[holds], recovery=recovery), standby=standby)
    job.wait_step(15)
    box.having(lost)[0].kill()
    gate.touch()
    assert job.wait_ended().end_reason is EndReason.COMPLETED
    assert job.history() == calm_history(40)
    wait_until(lambda: living() == {standby[0]}, "the end of the agent of the life before")
    job.release()
    wait_until(lambda: not living(), "the end of all")


def test_a_job_starts_for_itself_what_has_died_meanwhile(box, standby):
    from orchestrator.supervision.place import kill_named

    for name in standby:
        kill_named(name)
    wait_until(lambda: not living(), "their end")
    job = box.start(double_spec(box.url), standby=standby)
    assert job.wait_ended().end_reason is EndReason.COMPLETED
    assert job.history() == calm_history(40)
    job.release()


def test_after_a_change_of_the_code_none_of_before_is_given_away(box, monkeypatch):
    import ray

    from orchestrator.supervision import standby

    pool, node = standby.Standby(box.home), ray.nodes()[0]["NodeID"]
    pool.fill([node], used=living())
    before = {name for name in living() if name.startswith(standby.PREFIX)}
    monkeypatch.setattr(standby, "content", lambda: "edited")
    assert pool.take([node], agents=True) == ("", "") and pool.lacks([node])
    pool.fill([node], used=())
    after = pool.take([node], agents=True)
    assert all(after) and not before & set(after)
    wait_until(lambda: not before & living(), "the end of those with the code of before")
    for name in after:
        standby.kill_named(name)


def test_what_a_controller_has_left_is_ended_and_what_a_job_has_is_not(box, standby):
    import ray

    from orchestrator.supervision.standby import Standby

    supervisor, agent = standby
    later, node = Standby(box.home), ray.nodes()[0]["NodeID"]
    later.fill([node], used={agent})
    wait_until(lambda: supervisor not in living(), "the end of the one that was left")
    assert agent in living() and len(living()) == 3
    later.close()
    wait_until(lambda: living() == {agent}, "the end of those that stood by")
