"""The place that is kept for a job, and who may use it before."""

from __future__ import annotations

import math

from orchestrator.control.scheduler.model import CPU_UNITS, ClusterView, Demand, Node
from orchestrator.control.scheduler.place import Grid
from orchestrator.control.scheduler.reserve import Reservations, earliest

EVERYWHERE = 0b111


def need(gpus):
    return Demand(num_workers=gpus, cpu_units=CPU_UNITS, gpus=1)


def grid(*held):
    """Three nodes of 8 GPUs, of which so many are in use."""
    found = Grid(ClusterView(nodes=tuple(Node(id=f"n{i}", cpu_units=8 * CPU_UNITS, gpus=8) for i in range(3))))
    for i, count in enumerate(held):
        found.take(need(1), ((i, count),))
    return found


RELEASES = [(10.0, need(4), ((0, 4),)), (20.0, need(4), ((1, 4),)), (30.0, need(4), ((0, 4),)), (90.0, need(8), ((2, 8),))]
FULL = (8, 8, 8)


def test_the_earliest_place_is_on_nodes_not_a_number_of_gpus():
    assert earliest(grid(*FULL), need(4), EVERYWHERE, RELEASES) == (10.0, ((0, 4),))
    assert earliest(grid(*FULL), need(8), EVERYWHERE, RELEASES) == (30.0, ((0, 8),)), "8 GPUs are free at 20, on two nodes"
    assert earliest(grid(*FULL), need(16), EVERYWHERE, RELEASES) == (90.0, ((0, 8), (2, 8)))
    assert earliest(grid(*FULL), need(24), EVERYWHERE, RELEASES) is None
    assert earliest(grid(0, 8, 8), need(8), EVERYWHERE, [], soon_s=5.0) == (5.0, ((0, 8),))


def test_others_may_start_where_the_place_is_left_or_if_they_end_before():
    now = grid(4, 6, 8)
    kept = Reservations(now)
    assert kept.reserve(need(8), EVERYWHERE, True, now, 0.0, [(30.0, need(4), ((0, 4),))]) == (30.0, ((0, 8),))
    assert kept.place(need(2), EVERYWHERE, True, math.inf) == ((1, 2),)
    assert kept.place(need(4), EVERYWHERE, True, 31.0) is None
    assert kept.place(need(4), EVERYWHERE, True, 30.0) == ((0, 4),)


def test_two_places_are_kept_apart():
    now = grid(*FULL)
    kept = Reservations(now)
    assert kept.reserve(need(8), EVERYWHERE, True, now, 0.0, RELEASES) == (30.0, ((0, 8),))
    assert kept.reserve(need(8), EVERYWHERE, True, now, 0.0, RELEASES) == (90.0, ((2, 8),))
    assert kept.first_s == 30.0 and kept.nodes == 0b101


def test_who_starts_takes_it_from_all_that_is_left():
    now = grid(0, 8, 8)
    kept = Reservations(now)
    kept.reserve(need(10), EVERYWHERE, False, now, 0.0, [(50.0, need(8), ((1, 8),))])
    assert kept.place(need(6), EVERYWHERE, True, math.inf) is None  # 8 on n0 and 2 on n1, then 6 are left there, but not now
    found = kept.place(need(6), EVERYWHERE, True, 40.0)
    assert found == ((0, 6),)
    now.take(need(6), found)
    kept.take(need(6), found, 40.0)
    assert kept.place(need(6), EVERYWHERE, True, 40.0) is None and kept.place(need(2), EVERYWHERE, True, 40.0) == ((0, 2),)
