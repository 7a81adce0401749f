"""The schedulers that ours is measured against, on small clusters that can be followed by hand."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.control.scheduler.model import ClusterView, Plan, Policy
from orchestrator.errors import ConfigError
from orchestrator.simulation.baselines import BASELINES, baseline
from orchestrator.simulation.cluster import Cluster, demand_of
from orchestrator.simulation.engine import simulate
from orchestrator.simulation.generate import generate
from orchestrator.simulation.grid import Grid
from orchestrator.simulation.model import Outcome, Planner, Shape, TraceJob, World

TWO_NODES = World(shapes=(Shape(nodes=2, gpus_per_node=8),))
EXACT = ("easy", "sjf-easy")
WITHOUT_PREEMPTION = ("fifo-strict", "greedy", *EXACT)


def job(name: str, submit_s: float, gpus: int, duration_s: float) -> TraceJob:
    return TraceJob(id=name, submit_s=submit_s, gpus=gpus, duration_s=duration_s)


def run(name: str, trace, world: World = TWO_NODES) -> Outcome:
    return simulate(trace, world, *baseline(name, trace), name=name)


def starts(name: str, trace) -> dict[str, float]:
    return {found.job.id: found.first_start_s for found in run(name, trace).jobs}


BUSY = (job("a", 0, 8, 1000), job("b", 0, 4, 400))
"""Four GPUs stay free until 400 s, eight until 1,000 s."""
HEAD = job("head", 10, 16, 1000)


def test_strict_lets_nobody_pass():
    assert starts("fifo-strict", [*BUSY, HEAD, job("c", 20, 1, 10)]) == {"a": 0, "b": 0, "head": 1000, "c": 2000}


def test_greedy_lets_all_pass_that_fit():
    late = job("c", 20, 4, 5000)
    assert starts("greedy", [*BUSY, HEAD, late, job("d", 30, 8, 10)]) == {"a": 0, "b": 0, "c": 20, "d": 1000, "head": 5020}


def test_easy_lets_pass_who_is_gone_before_the_head_starts():
    ends_in_time, too_long = job("c", 20, 2, 980), job("d", 20, 2, 981)
    assert starts("easy", [*BUSY, HEAD, ends_in_time, too_long]) == {"a": 0, "b": 0, "c": 20, "head": 1000, "d": 2000}


def test_easy_lets_pass_who_leaves_the_reserved_node():
    head = job("head", 10, 8, 1000)  # on the node of b, from 400 s
    beside, together = [job("a", 0, 6, 9000), job("b", 0, 8, 400)], [job("c", 20, 1, 5000), job("d", 20, 1, 5000)]
    assert starts("easy", [*beside, head, *together]) == {"a": 0, "b": 0, "head": 400, "c": 20, "d": 20}
    three = job("e", 20, 3, 100)  # fits nowhere: two are free on the node of a
    assert starts("easy", [*beside, head, three])["e"] == 1400


def test_shortest_first():
    trace = [job("a", 0, 16, 100), job("b", 10, 16, 50), job("c", 20, 16, 10)]
    assert starts("sjf-easy", trace) == {"a": 0, "c": 100, "b": 110}
    assert starts("easy", trace) == {"a": 0, "b": 100, "c": 150}


def test_las_gives_the_place_of_who_had_most():
    trace = [job("a", 0, 8, 7200), job("b", 1800, 8, 7200), job("c", 2400, 8, 60)]
    outcome = run("las", trace)
    assert [stay.end for stay in outcome.jobs[0].segments][:1] == ["preempted"]
    assert outcome.jobs[0].segments[0].end_s == 2400
    assert outcome.jobs[1].segments[0].end == "done" or outcome.jobs[1].segments[0].end_s > 2460
    assert outcome.jobs[2].first_start_s == 2400


def test_within_a_level_nobody_who_came_first_is_preempted():
    trace = [job("a", 0, 16, 3000), job("b", 60, 16, 440), job("c", 120, 16, 60)]
    outcome = run("las-3", trace)  # a falls to the second level after 450 s
    assert [(stay.start_s, stay.end) for stay in outcome.jobs[0].segments] == [(0, "preempted"), (980, "done")]
    assert (outcome.jobs[1].first_start_s, outcome.jobs[2].first_start_s) == (480, 920)


def test_shortest_remaining_first():
    trace = [job("a", 0, 16, 600), job("b", 120, 16, 400), job("c", 120, 16, 560)]
    outcome = run("srtf", trace)
    assert [(stay.start_s, stay.end_s, stay.end) for stay in outcome.jobs[0].segments] == [(0, 120, "preempted"), (520, 1062, "done")]
    assert (outcome.jobs[1].first_start_s, outcome.jobs[2].first_start_s) == (120, 1062)


def test_only_as_many_are_preempted_as_must():
    crowd = [job(f"crowd{index}", 0, 4, 20_000) for index in range(4)]
    outcome = run("las", [*crowd, job("new", 6000, 8, 60)])
    assert outcome.jobs[-1].first_start_s == 6000
    assert sum(stay.end == "preempted" and stay.end_s == 6000 for found in outcome.jobs for stay in found.segments) == 2


@pytest.mark.parametrize("name", BASELINES)
def test_all_jobs_end_with_all_of_their_work(name):
    trace = generate("overloaded", jobs=120, gpus=32, seed=4)
    world = World(shapes=(Shape(nodes=4, gpus_per_node=8),))
    for found in run(name, trace, world).jobs:
        ran_s = sum(stay.end_s - stay.start_s for stay in found.segments)
        assert ran_s == pytest.approx(found.job.duration_s + found.lost_gpu_s / found.job.gpus)
        assert found.waited_s == pytest.approx(found.jct_s - ran_s)
        assert found.preemptions == 0 or name not in WITHOUT_PREEMPTION
        assert found.first_start_s >= found.job.submit_s


@pytest.mark.parametrize("name", EXACT)
def test_with_exact_run_times_the_head_starts_no_later_than_reserved(name):
    trace = generate("overloaded", jobs=150, gpus=32, seed=5)
    planner, policy = baseline(name, trace)
    promised: dict[str, float] = {}

    def watched(*given) -> Plan:
        plan = planner(*given)
        for reservation in plan.reservations:
            promised.setdefault(reservation.job_id, reservation.start_s)
        return plan

    outcome = simulate(trace, World(shapes=(Shape(nodes=4, gpus_per_node=8),)), watched, policy)
    began = {found.job.id: found.first_start_s for found in outcome.jobs}
    assert len(promised) > 10
    late = {job_id for job_id, at in promised.items() if began[job_id] > at + 1e-6}
    assert not late if name == "easy" else len(late) < len(promised) / 2  # who is shorter may come before the head later


@pytest.mark.parametrize("name", [name for name, found in BASELINES.items() if found.preempts])
def test_skipping_rounds_changes_nothing(name):
    trace = generate("plain", jobs=80, gpus=32, seed=3)
    world = World(shapes=(Shape(nodes=4, gpus_per_node=8),))
    planner, policy = baseline(name, trace)
    skipping, stepping = (simulate(trace, world, planner, policy, every_round=every) for every in (False, True))
    assert (skipping.jobs, skipping.timeline) == (stepping.jobs, stepping.timeline)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 8), min_size=1, max_size=5), st.integers(1, 40))
def test_a_place_is_found_exactly_where_there_is_one(free, gpus):
    world = World(shapes=(Shape(nodes=len(free), gpus_per_node=8),))
    nodes = Cluster(world).view.nodes
    grid = Grid({node.id: count for node, count in zip(nodes, free, strict=True)}, 8)
    found = grid.place(demand_of(gpus, world))
    whole, rest = divmod(gpus, 8)
    empty = sum(count == 8 for count in free)
    fits = empty >= whole and (not rest or empty > whole or any(rest <= count < 8 for count in free))
    assert (found is not None) == fits
    if found is not None:
        assert sum(count for _, count in found) == gpus
        assert all(dict(zip((node.id for node in nodes), free, strict=True))[node_id] >= count for node_id, count in found)
        assert sorted(count for _, count in found) == sorted([8] * whole + [rest] * bool(rest))


def test_a_wrong_name_is_told():
    with pytest.raises(ConfigError, match=r"no baseline 'sjf'; there are fifo-strict, .* Did you mean"):
        baseline("sjf", ())


def test_an_empty_queue_asks_for_nothing():
    planner: Planner
    for name in BASELINES:
        planner, _ = baseline(name, ())
        assert not planner(ClusterView(), (), (), None, 0.0, Policy()).starts  # type: ignore[arg-type]
