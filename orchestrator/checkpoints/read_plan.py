"""Who reads which block of a checkpoint, and who has it from whom. Pure.

The unit is the block, because a checksum covers one. All segments lie end to end on one line of addresses, each beginning at a whole
block; what a rank needs is a sorted list of intervals of that line. Every rank makes the same plan from the needs of all.

A block is read from the store once; or by one rank of each node that has it near, which costs the store nothing. Ranks of a node see
each other's memory, so a block comes to a node once, to the rank that holds it there. The blocks are dealt out in rounds, which bound the
memory: a rank reads into a ring of slots, twice as many as it reads for a round, and receives into others. What a rank wants alone and
whole needs no slot: it is read in runs of blocks to where it is wanted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from orchestrator.checkpoints.manifest import BLOCK_BYTES, Segment

READS = 4
"""Blocks that a rank reads for one round, at most; half of it where others of its node read too."""
RECEIVES = 8
"""Blocks that a rank receives in one round, at most."""
RUNS = 8
"""Runs that a rank reads for one round."""
_RUN_BLOCKS = 2
"""Of one segment, read by one request; at most."""
GAP_BYTES = 64 * 1024
"""Needs as near as this to each other are taken as one."""
_ALIGN_BYTES = 4096
_PREFERENCE_BYTES = 2 * BLOCK_BYTES
"""A rank reads so much more than another before that one reads for it what it does not need itself."""


Runs = Sequence[Sequence[int]]
"""Blocks that follow each other in a segment, each run read by one request."""


class Block(NamedTuple):
    segment: Segment
    number: int
    """In its segment."""
    start: int
    """Its first byte in the segment."""
    num_bytes: int


class Placed(NamedTuple):
    """Where a block lies in a round: in a slot of its holder. It came from the store if `source` is the holder itself."""

    block: int
    holder: int
    slot: int
    source: int
    source_slot: int
    round: int


class Line:
    """The segments of a checkpoint as one line of addresses."""

    def __init__(self, segments: Sequence[Segment]) -> None:
        self.first_blocks: dict[str, int] = {}
        self.blocks: list[Block] = []
        for segment in segments:
            self.first_blocks[segment.key] = len(self.blocks)
            for number, start in enumerate(range(0, segment.num_bytes, BLOCK_BYTES)):
                self.blocks.append(Block(segment, number, start, min(BLOCK_BYTES, segment.num_bytes - start)))

    def address(self, segment: str, offset: int) -> int:
        return self.first_blocks[segment] * BLOCK_BYTES + offset

    def interval(self, block: int) -> tuple[int, int]:
        return block * BLOCK_BYTES, block * BLOCK_BYTES + self.blocks[block].num_bytes


class ReadPlan:
    """`placed` in the order of rounds; by rank: `slots`, how many it has, and `runs`, the blocks that need none."""

    def __init__(
        self, line: Line, needs: Sequence[np.ndarray], nodes: Sequence[int], placed: Sequence[Placed], slots: Sequence[int],
        runs: Sequence[Runs],
    ) -> None:  # fmt: skip
        self._line = line
        self._needs = needs
        self._nodes = nodes
        self.placed = tuple(placed)
        self.slots = tuple(slots)
        self.runs = tuple(runs)
        self.num_rounds = max(1 + max((x.round for x in placed), default=-1), *(-(-len(some) // RUNS) for some in runs))
        self.slot_bytes = -(-max((line.blocks[x.block].num_bytes for x in placed), default=0) // _ALIGN_BYTES) * _ALIGN_BYTES

    def reads(self, rank: int) -> list[Placed]:
        """What a rank reads from the store, in its order."""
        return [x for x in self.placed if x.source == x.holder == rank]

    def transfers(self) -> dict[int, list[Placed]]:
        """What goes from node to node, by round."""
        found: dict[int, list[Placed]] = {}
        for x in self.placed:
            if x.source != x.holder:
                found.setdefault(x.round, []).append(x)
        return found

    def at(self, node: int) -> dict[int, Placed]:
        """Where the ranks of a node find the blocks that they need."""
        return {x.block: x for x in self.placed if self._nodes[x.holder] == node}

    def ranges(self, block: int, node: int) -> list[tuple[int, int]]:
        """[first, end) of the bytes of a block that any rank of a node needs, from the block's beginning; in order."""
        start, end = self._line.interval(block)
        found: list[tuple[int, int]] = []
        for needs in (needs for rank, needs in enumerate(self._needs) if self._nodes[rank] == node):
            first, last = np.searchsorted(needs[:, 1], start, "right"), np.searchsorted(needs[:, 0], end, "left")
            found += [(max(low, start) - start, min(high, end) - start) for low, high in needs[first:last].tolist()]
        return merged(found)


def merged(intervals: Collection[tuple[int, int]]) -> list[tuple[int, int]]:
    """Sorted and disjoint, with what is `GAP_BYTES` apart joined."""
    found: list[tuple[int, int]] = []
    for low, high in sorted(intervals):
        if found and low <= found[-1][1] + GAP_BYTES:
            found[-1] = (found[-1][0], max(high, found[-1][1]))
        else:
            found.append((low, high))
    return found


def plan_reads(
    line: Line, needs: Sequence[np.ndarray], near: Sequence[Collection[str]], nodes: Sequence[int], whole: Sequence[Collection[int]]
) -> ReadPlan:
    """By rank: `needs`, int64 [k, 2], sorted and disjoint intervals of the line; `near`, keys of the segments that it has near; `nodes`;
    `whole`, blocks that it can read to where it wants them."""
    dealer = _Dealer(near, nodes)
    needers = _needers(needs)
    dealt, alone = [], list[list[int]]([] for _ in needs)
    for block in sorted(needers):
        places = dealer.deal(line.blocks[block], needers[block])
        holder, source = places[0]
        if needers[block] == {holder} == {source} and block in whole[holder]:
            alone[holder].append(block)
        else:
            dealt.append((block, places))
    return _in_rounds(line, needs, nodes, dealt, [_runs(line, blocks) for blocks in alone])


def _needers(needs: Sequence[np.ndarray]) -> dict[int, set[int]]:
    """Ranks by the block that they need something of."""
    found: dict[int, set[int]] = {}
    for rank, intervals in enumerate(needs):
        for low, high in intervals.tolist():
            for block in range(low // BLOCK_BYTES, (high - 1) // BLOCK_BYTES + 1):
                found.setdefault(block, set()).add(rank)
    return found


def _runs(line: Line, blocks: Sequence[int]) -> Runs:
    found: list[tuple[int, ...]] = []
    for block in blocks:
        last = found[-1] if found else ()
        if 0 < len(last) < _RUN_BLOCKS and block == last[-1] + 1 and line.blocks[block].number:
            found[-1] = (*last, block)
        else:
            found.append((block,))
    return found


class _Dealer:
    def __init__(self, near: Sequence[Collection[str]], nodes: Sequence[int]) -> None:
        self._near = near
        self._nodes = nodes
        self._ranks: dict[int, list[int]] = {}
        for rank, node in enumerate(nodes):
            self._ranks.setdefault(node, []).append(rank)
        self._read_bytes = [0] * len(nodes)
        self._received_bytes = [0] * len(nodes)

    def deal(self, block: Block, needers: set[int]) -> list[tuple[int, int]]:
        """(holder, source) for each node that needs it; the first reads."""
        missing = {self._nodes[rank] for rank in needers}
        near = [rank for rank in range(len(self._nodes)) if block.segment.key in self._near[rank]]
        dealt = []
        for node in sorted(missing & {self._nodes[rank] for rank in near}):
            dealt.append(self._reads([rank for rank in near if self._nodes[rank] == node], needers, block))
        missing -= {self._nodes[holder] for holder, _ in dealt}
        if missing and not dealt:
            dealt.append(self._reads(near or [rank for node in sorted(missing) for rank in self._ranks[node]], needers, block))
        for node in sorted(missing - {self._nodes[dealt[0][0]]}):
            dealt.append((self._least(self._ranks[node], needers, self._received_bytes, block), dealt[0][0]))
        return dealt

    def _reads(self, ranks: Sequence[int], needers: set[int], block: Block) -> tuple[int, int]:
        reader = self._least(ranks, needers, self._read_bytes, block)
        return reader, reader

    @staticmethod
    def _least(ranks: Sequence[int], needers: set[int], done: list[int], block: Block) -> int:
        chosen = min(ranks, key=lambda rank: (done[rank] + (0 if rank in needers else _PREFERENCE_BYTES), rank))
        done[chosen] += block.num_bytes
        return chosen


def _in_rounds(
    line: Line, needs: Sequence[np.ndarray], nodes: Sequence[int], dealt: Sequence[tuple[int, list[tuple[int, int]]]], runs: Sequence[Runs]
) -> ReadPlan:
    """All readers at work in every round, as far as there is room for what they read."""
    turns: Counter[int] = Counter()
    order = []
    for block, places in dealt:
        order.append((turns[places[0][1]], block, places))
        turns.update(source for holder, source in places if holder == source)
    most_reads = [READS if nodes.count(node) == 1 else READS // 2 for node in nodes]
    ring = {rank: min(2 * most_reads[rank], count) for rank, count in turns.items()}
    read, reading, receiving = Counter[int](), Counter[int](), Counter[int]()
    most: Counter[int] = Counter()
    placed, number = [], 0
    for _, block, places in sorted(order):
        readers = [source for holder, source in places if holder == source]
        receivers = [holder for holder, source in places if holder != source]
        if any(reading[rank] == most_reads[rank] for rank in readers) or any(receiving[rank] == RECEIVES for rank in receivers):
            number, reading, receiving = number + 1, Counter(), Counter()
        slots: Mapping[int, int] = {rank: read[rank] % ring[rank] for rank in readers}
        for holder, source in places:
            slot = slots[holder] if holder == source else ring.get(holder, 0) + receiving[holder]
            placed.append(Placed(block, holder, slot, source, slots[source], number))
        for counts, ranks in ((read, readers), (reading, readers), (receiving, receivers)):
            counts.update(ranks)
        most |= receiving
    return ReadPlan(line, needs, nodes, placed, [ring.get(rank, 0) + most[rank] for rank in range(len(nodes))], runs)
