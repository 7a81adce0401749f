"""Who reads what: every needed block once, everybody about as much, never two blocks in one slot at a time."""

from __future__ import annotations

import random
from collections import Counter

import numpy as np
import pytest

from orchestrator.checkpoints.manifest import BLOCK_BYTES, Segment
from orchestrator.checkpoints.read_plan import READS, RECEIVES, RUNS, Line, merged, plan_reads


def line_of(*num_blocks):
    """Segments of so many blocks, each with a short one at its end."""
    sizes = [(count - 1) * BLOCK_BYTES + 4096 for count in num_blocks]
    counted = enumerate(zip(sizes, num_blocks, strict=True))
    return Line([Segment(key=f"s{n}", num_bytes=size, block_crcs=(0,) * count) for n, (size, count) in counted])


def needs_of(*intervals):
    return np.array(intervals, dtype=np.int64).reshape(-1, 2)


def all_of(line):
    return needs_of(*(line.interval(block) for block in range(len(line.blocks))))


def random_case(seed):
    rng = random.Random(seed)
    line = line_of(*(rng.randint(1, 40) for _ in range(rng.randint(1, 4))))
    world = rng.randint(1, 7)
    nodes = sorted(rng.choice([0, 1, 2]) for _ in range(world))
    needs = []
    for _ in range(world):
        found = []
        for block in range(len(line.blocks)):
            start, end = line.interval(block)
            if rng.random() < 0.6:
                low = rng.randrange(start, end)
                found.append((low, rng.randint(low + 1, end)))
        needs.append(needs_of(*merged(found)))
    near = [{f"s{n}" for n in range(4) if rng.random() < 0.2} for _ in range(world)]
    whole = [{block for block in range(len(line.blocks)) if rng.random() < 0.5} for _ in range(world)]
    return line, needs, near, nodes, whole


@pytest.mark.parametrize("seed", range(30))
def test_every_node_gets_the_blocks_that_it_needs_and_the_store_gives_each_once(seed):
    line, needs, near, nodes, whole = random_case(seed)
    plan = plan_reads(line, needs, near, nodes, whole)
    reads = [(x.block, x.holder) for x in plan.placed if x.source == x.holder]
    reads += [(block, rank) for rank, runs in enumerate(plan.runs) for run in runs for block in run]
    from_store = Counter(block for block, rank in reads if line.blocks[block].segment.key not in near[rank])
    assert set(from_store.values()) <= {1}
    for rank, intervals in enumerate(needs):
        wanted = {block for low, high in intervals.tolist() for block in range(low // BLOCK_BYTES, (high - 1) // BLOCK_BYTES + 1)}
        alone = {block for run in plan.runs[rank] for block in run}
        assert not alone & plan.at(nodes[rank]).keys()
        assert wanted == wanted & (alone | plan.at(nodes[rank]).keys()) and alone <= wanted & whole[rank]
    read = {(x.block, x.holder): x for x in plan.placed if x.source == x.holder}
    for x in plan.placed:
        source = read[x.block, x.source]
        assert (source.round, source.slot) == (x.round, x.source_slot)
        assert x.source == x.holder or nodes[x.source] != nodes[x.holder]
        near_somewhere = any(line.blocks[x.block].segment.key in keys for keys in near)
        assert not near_somewhere or line.blocks[x.block].segment.key in near[x.source]


@pytest.mark.parametrize("seed", range(30))
def test_memory_is_bounded_and_no_slot_is_filled_again_while_it_is_read(seed):
    line, needs, near, nodes, whole = random_case(seed)
    plan = plan_reads(line, needs, near, nodes, whole)
    assert all(count <= 2 * READS + RECEIVES for count in plan.slots)
    for rank in range(len(nodes)):
        reads = plan.reads(rank)
        most = READS if nodes.count(nodes[rank]) == 1 else READS // 2
        assert max(Counter(x.round for x in reads).values(), default=0) <= most
        received = [x for some in plan.transfers().values() for x in some if x.holder == rank]
        assert max(Counter(x.round for x in received).values(), default=0) <= RECEIVES
        assert len({(x.round, x.slot) for x in reads + received}) == len(reads + received)
        assert {x.slot for x in reads + received} == set(range(plan.slots[rank]))
        assert not {x.slot for x in reads} & {x.slot for x in received}
        last = {}
        for x in reads:  # what is read for a round is read while the round before goes on
            assert x.round - last.get(x.slot, -2) >= 2
            last[x.slot] = x.round


@pytest.mark.parametrize("nodes", [[0, 0, 0], [0, 1, 2], [0, 0, 1]])
def test_replicas_read_equal_shares(nodes):
    line = line_of(40, 13)
    plan = plan_reads(line, [all_of(line)] * 3, [()] * 3, nodes, [()] * 3)
    shares = [sum(line.blocks[x.block].num_bytes for x in plan.reads(rank)) for rank in range(3)]
    assert sum(shares) == sum(block.num_bytes for block in line.blocks)
    assert max(shares) - min(shares) <= 2 * BLOCK_BYTES


def test_who_needs_a_block_alone_reads_it():
    line = line_of(20, 20)
    halves = [needs_of(*(line.interval(block) for block in range(first, first + 20))) for first in (0, 20)]
    plan = plan_reads(line, halves, [()] * 2, [0, 1], [()] * 2)
    assert [[x.block for x in plan.reads(rank)] for rank in range(2)] == [list(range(20)), list(range(20, 40))]
    assert not plan.transfers()


def test_what_a_rank_wants_alone_and_whole_is_read_in_runs_and_takes_no_slot():
    line = line_of(5, 3)
    needs = [needs_of(*(line.interval(block) for block in range(6))), needs_of(*(line.interval(block) for block in range(5, 8)))]
    plan = plan_reads(line, needs, [()] * 2, [0, 1], [{0, 1, 2, 4, 5}, {5, 6, 7}])
    assert plan.runs == ([(0, 1), (2,), (4,)], [(6, 7)])
    assert {x.block: x.source for x in plan.placed if x.source == x.holder} == {3: 0, 5: 1}
    alone = plan_reads(line, needs[:1], [()], [0], [range(6)])
    assert (alone.placed, alone.slots, alone.slot_bytes, alone.runs) == ((), (0,), 0, ([(0, 1), (2, 3), (4,), (5,)],))


def test_all_runs_are_read_in_some_round():
    line = line_of(*[40] * 4)
    plan = plan_reads(line, [all_of(line), needs_of()], [()] * 2, [0, 1], [range(160), ()])
    assert len(plan.runs[0]) == 80 and plan.num_rounds * RUNS == 80


def test_ranks_of_a_node_help_who_needs_more():
    line = line_of(40)
    plan = plan_reads(line, [all_of(line), needs_of()], [()] * 2, [0, 0], [()] * 2)
    shares = [len(plan.reads(rank)) for rank in range(2)]
    assert sum(shares) == 40 and max(shares) - min(shares) <= 3


def test_what_is_near_is_read_there_and_sent_to_the_others():
    line = line_of(3, 3)
    plan = plan_reads(line, [all_of(line)] * 3, [{"s0"}, {"s0"}, ()], [0, 1, 2], [range(6)] * 3)
    near = [x for x in plan.placed if x.block < 3]
    assert {(x.holder, x.source) for x in near} == {(0, 0), (1, 1), (2, 0)}
    assert all(sum(x.block == block and x.source == x.holder for x in plan.placed) == 1 for block in range(3, 6))


def test_what_a_node_is_sent_is_what_its_ranks_need_of_a_block():
    line = line_of(2)
    far = 10 * 1024 * 1024
    needs = [needs_of((0, 100)), needs_of((far, far + 8)), needs_of((far + 4, far + 20), (BLOCK_BYTES + 8, BLOCK_BYTES + 4096))]
    plan = plan_reads(line, needs, [()] * 3, [0, 1, 1], [()] * 3)
    assert plan.ranges(0, 0) == [(0, 100)]
    assert plan.ranges(0, 1) == [(far, far + 20)]
    assert plan.ranges(1, 0) == []
    assert plan.ranges(1, 1) == [(8, 4096)]


def test_nothing_is_needed_of_an_empty_checkpoint():
    plan = plan_reads(Line([]), [needs_of()] * 2, [()] * 2, [0, 0], [()] * 2)
    assert (plan.placed, plan.num_rounds, plan.slots, plan.slot_bytes) == ((), 0, (0, 0), 0)
