"""Why a job waits, and what would let it start."""

from __future__ import annotations

import math

import pytest

from orchestrator.control.scheduler import ClusterView, Demand, Job, Policy, Run, Usage, explain
from orchestrator.control.scheduler.explain import Explanation
from orchestrator.control.scheduler.model import CPU_UNITS, Node
from orchestrator.errors import StateError

NOW = 10_000.0
VIEW = ClusterView(nodes=tuple(Node(id=f"n{i}", cpu_units=8 * CPU_UNITS, gpus=8) for i in range(2)))
USAGE = Usage(history={("", gpus): (1000.0,) for gpus in (1, 2, 4, 6, 8)})
BATCH = Policy(mode="batch", max_wait_s=1e6)
PREEMPTIVE = Policy(mode="preemptive", reserve_after_s=28_800.0)


def waits(name, gpus, since_s=NOW - 10, **more):
    demand = Demand(num_workers=gpus, cpu_units=CPU_UNITS, gpus=1)
    return Job(id=name, demand=demand, submitted_s=since_s, queued_s=since_s, **more)


def runs(name, gpus, node, ran_s=100.0, **more):
    started_s = NOW - ran_s
    job, placement = waits(name, gpus, started_s, **more), ((f"n{node}", gpus),)
    return Run(job=job, placement=placement, started_s=started_s, saved_s=math.inf, restart_s=60.0)


def asked(name, queue, running, policy=BATCH):
    return explain(name, VIEW, tuple(queue), tuple(running), USAGE, NOW, policy)


def test_the_head_has_a_reserved_start_and_knows_who_holds_its_place():
    told = asked("x", [waits("x", 8)], [runs("a", 6, 0, 400.0), runs("b", 8, 1)])
    assert told == Explanation(
        job_id="x", position=1, reason=told.reason, holders=("a",), start_s=NOW + 1600.0, reserved=True, with_workers=2, at_priority=None
    )
    assert told.reason.startswith("needs 8 x 1 CPU and 1 GPU; 2 CPUs and 2 GPUs are free on 2 nodes, held by a, b")


def test_those_behind_have_a_predicted_start_by_the_medians():
    queue = [waits("x", 8, NOW - 30), waits("y", 8, NOW - 20), waits("z", 8)]
    told = [asked(name, queue, [runs("a", 8, 0, 400.0), runs("b", 8, 1, 100.0)]) for name in ("x", "y", "z")]
    assert [one.position for one in told] == [1, 2, 3] and [one.reserved for one in told] == [True, False, False]
    assert [one.start_s for one in told[1:]] == [NOW + 900.0, NOW + 1600.0]  # x follows a at 600, y follows b, z follows x


def test_who_starts_now():
    assert asked("x", [waits("x", 8)], []) == Explanation(job_id="x", position=0, reason="starts now", start_s=NOW)


def test_with_fewer_workers_or_at_a_higher_priority_it_would_start():
    running = [runs("a", 8, 0, ran_s=1900.0), runs("b", 5, 1, ran_s=1900.0, priority=3)]
    told = asked("x", [waits("x", 8, attained=1e9)], running, PREEMPTIVE)
    assert (told.with_workers, told.at_priority) == (3, 1)
    young = [runs("a", 8, 0), runs("b", 5, 1)]
    assert asked("x", [waits("x", 8, attained=1e9)], young, PREEMPTIVE).at_priority is None, "all are protected"


def test_a_priority_helps_past_others_that_wait():
    queue = [waits("first", 8, NOW - 99, priority=4), waits("x", 1)]
    told = asked("x", queue, [runs("a", 8, 0), runs("b", 7, 1, ran_s=1000.0)])
    assert (told.position, told.at_priority) == (2, 4), "of the same class it comes first, as it is smaller"


def test_a_job_that_can_never_run_has_no_start():
    told = asked("x", [waits("x", 99)], [])
    assert (told.start_s, told.holders, told.with_workers) == (None, (), 16)
    assert told.reason == "needs 99 x 1 CPU and 1 GPU; the cluster has 16 CPUs and 16 GPUs on 2 nodes in all"


def test_a_job_that_does_not_wait():
    with pytest.raises(StateError, match=r"jbo does not wait\. Did you mean 'job'"):
        asked("jbo", [waits("job", 1)], [])
