"""The parts of the scheduler beside what trying everything finds, on small instances."""

from __future__ import annotations

from random import Random

from hypothesis import HealthCheck, Phase, assume, given, settings
from hypothesis import strategies as st
from scheduling.oracle import earliest, fits, held, is_legal, lost, most, open_nodes, placements, rooms
from scheduling.strategies import Moment, moment

from orchestrator.control.scheduler.clearing import cheapest
from orchestrator.control.scheduler.model import Demand, Job, Placement, Standing
from orchestrator.control.scheduler.place import Grid, place
from orchestrator.control.scheduler.preempt import Victim, cost
from orchestrator.control.scheduler.reserve import earliest as reserved

QUICK = settings(max_examples=50, deadline=None, derandomize=True, phases=[Phase.generate], suppress_health_check=list(HealthCheck))
Question = tuple[Moment, Job]
"""A moment, and one of the jobs that wait."""


def question(rng: Random) -> Question | None:
    at = moment(rng)
    return (at, rng.choice(at.queue)) if at.queue else None


questions = st.randoms(use_true_random=False).map(question).filter(bool)


def grid(at: Moment) -> Grid:
    """What is free beside the runs."""
    found = Grid(at.cluster)
    for run in at.running:
        found.take(run.job.demand, found.indexed(run.placement))
    return found


def placed(at: Moment, found: Grid, demand: Demand) -> Placement | None:
    place_ = place(found, demand, among(at, found, demand))
    return None if place_ is None else found.named(place_)


def among(at: Moment, found: Grid, demand: Demand) -> int:
    del found
    return sum(1 << at.cluster.index[node.id] for node in open_nodes(at, demand))


@QUICK
@given(questions)
def test_whether_a_gang_fits_is_counted_as_trying_finds_it(asked: Question):
    at, job = asked
    free = rooms(open_nodes(at, job.demand), held(at))
    assert fits(free, job.demand, job.demand.num_workers) == any(placements(free, job.demand, job.demand.num_workers))


@QUICK
@given(questions)
def test_a_place_is_found_where_there_is_one_and_on_the_fewest_nodes_of_good_standing(asked: Question):
    at, job = asked
    free = rooms(open_nodes(at, job.demand), held(at))
    every, found = list(placements(free, job.demand, job.demand.num_workers)), placed(at, grid(at), job.demand)
    assert (found is not None) == bool(every)
    if found is not None:
        assert is_legal(found, free, job.demand) and all(count <= most(free[node_id], job.demand) for node_id, count in found)
        good = {node.id for node in at.usable if node.standing is Standing.GOOD}
        on_good = [other for other in every if all(node_id in good for node_id, _ in other)]
        assert not on_good or found in on_good
        assert len(found) == min(len(other) for other in on_good or every)


@QUICK
@given(questions)
def test_victims_are_enough_and_none_could_stay_and_on_one_node_they_are_the_cheapest(asked: Question):
    at, job = asked
    free = grid(at)
    nodes, size = open_nodes(at, job.demand), job.demand.num_workers
    assume(not fits(rooms(nodes, held(at)), job.demand, size))
    victims = [Victim(run=run, place=free.indexed(run.placement), cost=cost(run, at.now)) for run in at.running]
    assert [victim.cost for victim in victims] == [lost(run, at.now) for run in at.running]
    sets = _enough(at, job)
    found = cheapest(free, job.demand, among(at, free, job.demand), victims)
    assert (found is not None) == bool(sets)
    if found is not None:
        names = frozenset(victim.run.job.id for victim in found[0])
        assert names in sets and not any(other < names for other in sets)
        if len(found[1]) == 1 and _only_gpus_are_short(at, job):
            costs = {run.job.id: lost(run, at.now) for run in at.running}
            least = min(sum(costs[name] for name in other) for other in sets)
            assert sum(costs[name] for name in names) <= least * 1.000001


def _only_gpus_are_short(at: Moment, job: Job) -> bool:
    enough = all(room.cpu_units >= job.demand.num_workers * job.demand.cpu_units for room in rooms(at.usable, held(at)).values())
    return job.demand.gpus > 0 and enough


def _enough(at: Moment, job: Job) -> set[frozenset[str]]:
    """Every set of runs without which the job fits."""
    names, nodes = [run.job.id for run in at.running], open_nodes(at, job.demand)
    subsets = (frozenset(name for bit, name in enumerate(names) if number >> bit & 1) for number in range(2 ** len(names)))
    return {chosen for chosen in subsets if fits(rooms(nodes, held(at, (), chosen)), job.demand, job.demand.num_workers)}


@QUICK
@given(questions, st.randoms(use_true_random=False))
def test_a_reservation_is_the_earliest_place_as_runs_end(asked: Question, rng: Random):
    at, job = asked
    free, size = grid(at), job.demand.num_workers
    assume(not fits(rooms(open_nodes(at, job.demand), held(at)), job.demand, size))
    ends = {run.job.id: at.now + 60 * rng.randint(1, 4) for run in at.running}
    releases = sorted(
        ((ends[run.job.id], run.job.demand, free.indexed(run.placement)) for run in at.running), key=lambda release: release[0]
    )
    found = reserved(free, job.demand, among(at, free, job.demand), releases)
    assert (found[0] if found else None) == earliest(at, job, ends)
