"""Where gangs on GPUs are placed; those on CPUs: test_scheduler.py."""

from __future__ import annotations

import dataclasses
import json
import random

import pytest

from orchestrator.control.scheduler import feasible
from orchestrator.control.scheduler.model import CPU_UNITS, ClusterView, Demand, Node, Standing
from orchestrator.control.scheduler.place import Grid, bits, place


def grid(*free, total=8, standings=()):
    """Nodes with `total` GPUs each, of which so many are free."""
    nodes = [
        Node(id=f"n{i}", cpu_units=64 * CPU_UNITS, gpus=total, standing=dict(standings).get(i, Standing.GOOD)) for i in range(len(free))
    ]
    found = Grid(ClusterView(nodes=tuple(nodes)))
    for i, count in enumerate(free):
        found.set(i, found.cpus[i], count)
    return found


def need(workers, gpus=1, **more):
    return Demand(num_workers=workers, cpu_units=CPU_UNITS, gpus=gpus, **more)


def placed(found, demand, among=None):
    return place(found, demand, found.everywhere if among is None else among)


@pytest.mark.parametrize(
    ("free", "demand", "expected"),
    [
        ((8, 3, 2, 3), need(3), ((1, 3),)),  # the fullest with room, the first of equals
        ((4, 4, 4), need(5), None),  # fits one node, so that it stays on one
        ((8, 7, 8), need(16), ((0, 8), (2, 8))),
        ((8, 7, 8, 5, 4), need(20), ((0, 8), (2, 8), (4, 4))),  # the last part where it fits most tightly
        ((8, 7, 7, 3), need(16), None),  # 25 are free, but only one node is whole
        ((8, 7, 7, 3), need(12), ((0, 8), (1, 4))),
        ((6, 6), need(2, gpus=4), None),
        ((8, 4), need(2, gpus=4), ((0, 2),)),
        ((8, 8), need(12, group=4), ((0, 8), (1, 4))),
        ((6, 2), need(4, gpus=2, max_workers_per_node=3), ((0, 3), (1, 1))),
    ],
)
def test_where_a_gang_goes(free, demand, expected):
    assert placed(grid(*free), demand) == expected


def test_a_group_is_never_split():
    six = grid(6, 6, 6, total=6)
    assert placed(six, need(12, group=4)) == ((0, 4), (1, 4), (2, 4))
    assert placed(six, need(8, group=2)) == ((0, 6), (1, 2))


def test_a_gang_with_labels_goes_to_nodes_that_have_all_of_them():
    of = (("kind=new", "zone=a"), ("zone=a",), ("kind=new", "zone=b"), ())
    labels = [tuple(tuple(one.split("=")) for one in names) for names in of]
    nodes = tuple(Node(id=f"n{i}", cpu_units=8 * CPU_UNITS, gpus=8, labels=found) for i, found in enumerate(labels))
    there = Grid(ClusterView(nodes=nodes))
    assert list(bits(there.with_labels(need(1)))) == [0, 1, 2, 3]
    assert list(bits(there.with_labels(need(1, labels=(("zone", "a"),))))) == [0, 1]
    assert list(bits(there.with_labels(need(1, labels=(("kind", "new"), ("zone", "a")))))) == [0]
    assert not there.with_labels(need(1, labels=(("zone", "c"),)))
    of_b = need(16, labels=(("zone", "b"),))
    assert feasible(there.cluster, need(16, labels=(("zone", "a"),))) is None
    assert feasible(there.cluster, of_b) == (
        "needs 16 x 1 CPU and 1 GPU on nodes with zone=b; the cluster has 8 CPUs and 8 GPUs on 1 node with that in all"
    )
    assert feasible(ClusterView.from_dict(json.loads(json.dumps(there.cluster.to_dict()))), of_b)
    assert Demand.from_dict(json.loads(json.dumps(dataclasses.asdict(of_b)))) == of_b


def test_nodes_that_are_suspected_come_last():
    doubtful = grid(4, 8, 8, standings={0: Standing.SUSPECT, 1: Standing.EXCLUDED})
    assert placed(doubtful, need(4)) == ((2, 4),)
    assert placed(doubtful, need(8), among=0b011) == ((1, 8),)
    assert placed(doubtful, need(4), among=0b011) == ((0, 4),)


def test_sets_of_nodes_follow_what_is_free():
    rng, found = random.Random(1), grid(*[8] * 12)
    for _ in range(300):
        i = rng.randrange(12)
        change = rng.randint(-found.gpus[i], 8 - found.gpus[i])
        (found.give if change > 0 else found.take)(need(1), ((i, abs(change)),))
        other = found.copy()
        other.set(i, 0, 0)
        assert [sum(1 for count in found.gpus if count == free) for free in range(9)] == [len([*bits(row)]) for row in found.buckets]
        assert all(found.gpus[i] == free for free, row in enumerate(found.buckets) for i in bits(row))


def test_what_others_leave_is_the_smaller_of_both():
    now, later = grid(5, 8, 3), grid(8, 2, 8)
    now.narrow(later, ((0, 0), (1, 0)))
    assert now.gpus == [5, 2, 3]
