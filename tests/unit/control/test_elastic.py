"""When a job that may run on fewer workers does, and when it goes back to all of them: pure."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.control.scheduler import ClusterView, Demand, Job, Policy, Run, Usage, plan
from orchestrator.control.scheduler.model import CPU_UNITS, Node

FOUR = Demand(num_workers=4, cpu_units=CPU_UNITS)
NOW = 100.0


def node(name, cpus, **more):
    return Node(id=name, cpu_units=cpus * CPU_UNITS, **more)


def waits(name="a", at=0.0, since=None, smaller=(1, 2), demand=FOUR, after=30.0):
    return Job(id=name, submitted_s=at, queued_s=at, demand=demand, smaller=smaller, shrink_after_s=after, short_since_s=since)


def runs(name, workers, node_id="n1", demand=FOUR, **more):
    return Run(job=Job(id=name, demand=demand, submitted_s=0.0, queued_s=0.0), placement=((node_id, workers),), started_s=0.0, **more)


def decide(nodes, queue=(), running=()):
    return plan(ClusterView(nodes=tuple(nodes)), tuple(queue), tuple(running), Usage(), NOW, Policy())


def starts(decided):
    return {start.job_id: start.placement for start in decided.starts}


def grows(decided):
    return [(resize.job_id, resize.workers) for resize in decided.resizes]


WHY = "needs 4 x 1 CPU; the cluster has 3 CPUs on 1 node in all"


def test_a_job_whose_nodes_are_gone_waits_for_others_to_come_and_then_takes_what_it_may():
    first = decide([node("n1", 3)], [waits()])
    assert not first.starts and first.short == ("a",) and first.next_change_at == NOW + 30
    assert first.reasons == {"a": f"{WHY}; starts with 2 workers if no node comes within 30 s"}
    early = decide([node("n1", 3)], [waits(since=NOW - 29.9)])
    assert not early.starts and early.reasons == first.reasons
    due = decide([node("n1", 3)], [waits(since=NOW - 30)])
    assert starts(due) == {"a": (("n1", 2),)} and due.short == ("a",)
    assert starts(decide([node("n1", 3), node("n2", 2)], [waits(since=NOW - 99)])) == {"a": (("n1", 3), ("n2", 1))}


def test_it_does_not_wait_where_it_is_told_not_to():
    assert starts(decide([node("n1", 1)], [waits(after=0.0)])) == {"a": (("n1", 1),)}


@pytest.mark.parametrize(
    "nodes", [[node("n1", 3), node("n2", 4, draining=True)], [node("n1", 3), node("n2", 4, alive=False)]], ids=["draining", "dead"]
)
def test_a_node_that_goes_is_missing(nodes):
    assert starts(decide(nodes, [waits(since=0.0)])) == {"a": (("n1", 2),)}


def test_a_rigid_job_waits_for_nodes_and_keeps_nobody():
    decided = decide([node("n1", 3)], [waits(smaller=(), since=0.0), waits("b", 1.0, demand=Demand(num_workers=1, cpu_units=CPU_UNITS))])
    assert starts(decided) == {"b": (("n1", 1),)} and decided.reasons == {"a": WHY} and decided.short == ("a",)


def test_what_is_smaller_than_any_size_it_may_have_is_nothing():
    reason = decide([node("n1", 1)], [waits(smaller=(2, 3), since=0.0)]).reasons["a"]
    assert reason == "needs 4 x 1 CPU; the cluster has 1 CPU on 1 node in all"


def test_nodes_that_others_use_are_waited_for_by_the_whole_gang():
    decided = decide([node("n1", 4)], [waits(since=0.0)], [runs("b", 2)])
    assert not decided.starts and not decided.short
    assert decided.reasons == {"a": "needs 4 x 1 CPU; 2 CPUs are free, held by b"}


def test_those_behind_a_job_that_is_about_to_shrink_wait_with_it():
    one = Demand(num_workers=1, cpu_units=CPU_UNITS)
    queue = [waits(at=1.0), waits("b", 2.0, smaller=(), demand=one)]
    assert decide([node("n1", 3)], queue).reasons["b"] == "waits its turn behind a"
    due = decide([node("n1", 3)], [waits(at=1.0, since=0.0), queue[1]])
    assert starts(due) == {"a": (("n1", 2),), "b": (("n1", 1),)}


def test_a_smaller_gang_waits_for_its_turn_as_any_other():
    decided = decide([node("n1", 3)], [waits(since=0.0)], [runs("b", 2)])
    assert decided.reasons == {"a": "needs 2 x 1 CPU; 1 CPU is free, held by b"}


def test_it_grows_when_its_whole_gang_fits_beside_what_others_have():
    nodes = [node("n1", 2), node("n2", 2)]
    assert grows(decide(nodes, running=[runs("a", 2, may_grow=True)])) == [("a", 4)]
    assert grows(decide(nodes, running=[runs("a", 2)])) == []  # too soon
    assert grows(decide(nodes, running=[runs("a", 2, may_grow=True), runs("b", 1, "n2")])) == []
    assert grows(decide([node("n1", 2), node("n2", 2, draining=True)], running=[runs("a", 2, may_grow=True)])) == []
    both = [runs("a", 2, may_grow=True), runs("b", 2, "n2", may_grow=True)]
    assert grows(decide([*nodes, node("n3", 2)], running=both)) == [("a", 4)]  # one after the other


def test_nobody_grows_while_a_job_waits_that_could_run():
    nodes, eight = [node("n1", 4), node("n2", 4)], Demand(num_workers=8, cpu_units=CPU_UNITS)
    assert grows(decide(nodes, [waits("b", demand=eight)], [runs("a", 2, may_grow=True)])) == []
    nine = Demand(num_workers=9, cpu_units=CPU_UNITS)
    assert grows(decide(nodes, [waits("b", demand=nine, smaller=())], [runs("a", 2, may_grow=True)])) == [("a", 4)]


def test_the_place_of_a_job_that_leaves_to_grow_is_kept_for_it():
    nodes = [node("n1", 2), node("n2", 2)]
    one, two = (Demand(num_workers=count, cpu_units=CPU_UNITS) for count in (1, 2))
    later = waits("b", 5.0, demand=two, smaller=())
    assert not decide(nodes, [later], [runs("a", 2, may_grow=True, growing=True)]).starts
    assert starts(decide(nodes, [later, waits("a")])) == {"a": (("n1", 2), ("n2", 2))}
    gone = decide([node("n1", 2), node("n2", 1)], [waits("b", demand=one)], [runs("a", 2, growing=True)])
    assert starts(gone) == {"b": (("n2", 1),)}  # it would not fit any more: nothing is kept


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.integers(0, 5), min_size=1, max_size=4),
    st.lists(st.tuples(st.integers(1, 6), st.booleans(), st.integers(0, 3), st.sampled_from([None, 0.0, 90.0])), max_size=5),
    st.lists(st.tuples(st.integers(1, 6), st.booleans(), st.booleans()), max_size=3),
)
def test_never_more_than_there_is_and_never_a_size_that_a_job_may_not_have(cpus, queue_rows, running_rows):
    nodes = [node(f"n{i}", count) for i, count in enumerate(cpus)]
    used, running = Counter(), []
    for number, (workers, may_grow, growing) in enumerate(running_rows):
        i, half = number % len(cpus), (workers + 1) // 2
        if used[f"n{i}"] + half <= cpus[i]:
            used[f"n{i}"] += half
            demand = Demand(num_workers=workers, cpu_units=CPU_UNITS)
            running.append(runs(f"r{number}", half, f"n{i}", demand, may_grow=may_grow, growing=growing and half < workers))
    queue = [
        waits(f"q{i}", at, since, tuple(range(1, workers)) if shrinks else (), Demand(num_workers=workers, cpu_units=CPU_UNITS))
        for i, (workers, shrinks, at, since) in enumerate(queue_rows)
    ]
    decided, jobs = decide(nodes, queue, running), {job.id: job for job in queue}
    for job_id, placement in starts(decided).items():
        given_workers = sum(workers for _, workers in placement)
        assert given_workers == jobs[job_id].demand.num_workers or (job_id in decided.short and given_workers in jobs[job_id].smaller)
        used.update(dict(placement))
    assert all(used[n.id] * CPU_UNITS <= n.cpu_units for n in nodes)
    assert {job_id for job_id, _ in grows(decided)} <= {run.job.id for run in running if run.may_grow and not run.growing}
    assert decide(nodes[::-1], queue[::-1], running[::-1]) == decided
