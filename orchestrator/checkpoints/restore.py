"""State comes back from the store into the tensors of any layout: what a rank wants is cut out of what the writers stored.

Ranks that restore together read each block once between them. A block that only one rank wants, and all of it, is read to where it is
wanted. For the others there are rounds: all have read their blocks of it and found them good; what other nodes need is sent to them; each
rank copies what it wants out of its node's memory, while threads read the next round's blocks.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import reduce

import numpy as np
import torch

from orchestrator.checkpoints.copies import Copy, Place, copies_of, places_of, whole_block
from orchestrator.checkpoints.manifest import Manifest, crc64
from orchestrator.checkpoints.pieces import StatePiece
from orchestrator.checkpoints.read_plan import RUNS, Block, Line, Placed, ReadPlan, merged, plan_reads
from orchestrator.checkpoints.restore_peers import Alone, Peers, agreed
from orchestrator.errors import CorruptObject, IncompatibleCheckpoint
from orchestrator.storage import ObjectStore

THREADS = 8
_ALONE = Alone()


def restore(
    store: ObjectStore,
    manifest: Manifest,
    wanted: Sequence[StatePiece],
    peers: Peers = _ALONE,
    *,
    tick: Callable[[], None] | None = None,
    needless: Collection[str] | None = None,
) -> None:
    """Fill every wanted piece in place. With `peers`, called by all of them, each with what it wants; what fails on one fails on all.

    Returns when the checksum of every block was verified; a bad block is read once more. After an error the pieces are filled in part,
    with bytes that nobody may use. `tick` is called as the work goes on.

    With `needless`, every tensor of the checkpoint must be wanted by some rank, except those of the roles named there. A store may
    have `near(key) -> bool`, whether this node has the object itself, and `origin`, the store behind what is near.

    Raises CorruptObject naming object and block, IncompatibleCheckpoint naming the first tensor that is missing, differs or is left over,
    and the store's StorageError.
    """
    line = Line(manifest.segments)
    copies: dict[int, list[Copy]] = defaultdict(list)
    with agreed(peers):
        for copy in copies_of(line, manifest, wanted):
            copies[copy.block].append(copy)
    if needless is not None:
        _refuse_left_over(manifest, wanted, peers, needless)
    intervals = merged([copy.byte_range() for some in copies.values() for copy in some])
    needs = [found.reshape(-1, 2) for found in peers.gather(np.array(intervals, dtype=np.int64).reshape(-1))]
    places = {block: found for block, some in copies.items() if (found := places_of(some, line.blocks[block].num_bytes))}
    whole = [set(found.tolist()) for found in peers.gather(np.array(sorted(places), dtype=np.int64))]
    plan = plan_reads(line, needs, _near(store, manifest, peers), peers.nodes, whole)
    _Restore(store, line, plan, peers, copies, places).run(tick or (lambda: None))


def export_tensors(store: ObjectStore, manifest: Manifest, role: str = "param") -> dict[str, np.ndarray]:
    """All tensors of a role, whole, by name. bfloat16, which numpy lacks, comes as float32."""
    pieces = []
    for (found, name), slices in manifest.tensors().items():
        if found == role:
            shape = slices[0].global_shape
            data = torch.empty(math.prod(shape), dtype=getattr(torch, slices[0].dtype))
            pieces.append(StatePiece(name=name, role=role, global_shape=shape, start=0, data=data))
    restore(store, manifest, pieces)
    return {piece.name: _as_numpy(piece.data.view(piece.global_shape)) for piece in pieces}


def _as_numpy(tensor: torch.Tensor) -> np.ndarray:
    return (tensor.float() if tensor.dtype is torch.bfloat16 else tensor).numpy()


def _refuse_left_over(manifest: Manifest, wanted: Sequence[StatePiece], peers: Peers, needless: Collection[str]) -> None:
    tensors = {tensor: number for number, tensor in enumerate(manifest.tensors())}
    mine = {tensors[piece.role, piece.name] for piece in wanted}
    used = set(np.concatenate(peers.gather(np.array(sorted(mine), dtype=np.int64))).tolist())
    for (role, name), number in tensors.items():
        if number not in used and role not in needless:
            raise IncompatibleCheckpoint(
                f"the checkpoint of {manifest.job_id} at step {manifest.step} has {role} of {name}, which is not in this model or "
                "optimizer; it was made by another."
            )


def _near(store: ObjectStore, manifest: Manifest, peers: Peers) -> list[set[str]]:
    near: Callable[[str], bool] = getattr(store, "near", lambda key: False)
    keys = [segment.key for segment in manifest.segments]
    mine = np.array([number for number, key in enumerate(keys) if near(key)], dtype=np.int64)
    return [{keys[number] for number in found.tolist()} for found in peers.gather(mine)]


class _Restore:
    """A plan at work."""

    def __init__(
        self, store: ObjectStore, line: Line, plan: ReadPlan, peers: Peers, copies: dict[int, list[Copy]], places: dict[int, list[Place]]
    ) -> None:
        self._store = store
        self._line = line
        self._plan = plan
        self._peers = peers
        self._reads = plan.reads(peers.rank)
        self._runs = plan.runs[peers.rank]
        self._places = places
        self._copies: dict[int, list[tuple[Placed, Copy]]] = defaultdict(list)
        at = plan.at(peers.nodes[peers.rank])
        for block in copies.keys() & at.keys():
            self._copies[at[block].round] += [(at[block], copy) for copy in copies[block]]
        self._slots = plan.slots[peers.rank]
        self._futures: list[Future[None]] = []
        self._run_futures: list[Future[None]] = []
        self._memory: dict[int, torch.Tensor] = {}

    def run(self, tick: Callable[[], None]) -> None:
        transfers = self._plan.transfers()
        self._memory = self._peers.share(self._slots * self._plan.slot_bytes)
        with ThreadPoolExecutor(max_workers=THREADS) as pool:
            try:
                self._read_ahead(pool, 0)
                for number in range(self._plan.num_rounds):
                    tick()
                    with agreed(self._peers):
                        self._copy(number - 1)
                        self._wait(number)
                    self._read_ahead(pool, number)
                    if number in transfers:
                        with agreed(self._peers):  # all ranks of a node find what was sent to one
                            self._transfer(transfers[number])
                with agreed(self._peers):
                    self._copy(self._plan.num_rounds - 1)
            finally:
                pool.shutdown(cancel_futures=True)

    def _read_ahead(self, pool: ThreadPoolExecutor, number: int) -> None:
        """Begin what has a free slot once the round `number` has begun: all ranks are through with those before. And the next runs."""
        ring = len({x.slot for x in self._reads})
        for index in range(len(self._futures), len(self._reads)):
            if index >= ring and self._reads[index - ring].round >= number:
                break
            self._futures.append(pool.submit(self._read, self._reads[index]))
        for run in self._runs[len(self._run_futures) : (number + 2) * RUNS]:
            self._run_futures.append(pool.submit(self._read_run, run))

    def _wait(self, number: int) -> None:
        for placed, future in zip(self._reads, self._futures, strict=False):
            if placed.round == number:
                future.result()
        for future in self._run_futures[number * RUNS : (number + 1) * RUNS]:
            future.result()

    def _read(self, placed: Placed) -> None:
        block = self._line.blocks[placed.block]
        self._read_good([(block, [memoryview(self._slot(placed.holder, placed.slot)[: block.num_bytes].numpy())])])

    def _read_run(self, run: Sequence[int]) -> None:
        blocks = [(self._line.blocks[number], self._places[number]) for number in run]
        self._read_good([(block, whole_block(places, block.num_bytes)) for block, places in blocks])

    def _read_good(self, wanted: Sequence[tuple[Block, Sequence[memoryview]]]) -> None:
        try:
            _read_verified(self._store, wanted)
        except CorruptObject:  # bytes may be lost or changed on the way
            _read_verified(getattr(self._store, "origin", self._store), wanted)

    def _transfer(self, placed: Sequence[Placed]) -> None:
        sends, receives, arrived = [], [], []
        for x in placed:
            if self._peers.rank not in (x.source, x.holder):
                continue
            ranges = self._plan.ranges(x.block, self._peers.nodes[x.holder])
            slot = self._slot(self._peers.rank, x.source_slot if self._peers.rank == x.source else x.slot)
            parts = [slot[low:high] for low, high in ranges]
            if self._peers.rank == x.source:
                sends.append((x.holder, parts[0] if len(parts) == 1 else torch.cat(parts)))
            else:
                packed = parts[0] if len(parts) == 1 else torch.empty(sum(map(len, parts)), dtype=torch.uint8)
                receives.append((x.source, packed))
                arrived.append((parts, packed))
        self._peers.transfer(sends, receives)
        for parts, packed in arrived:
            if len(parts) > 1:
                for part, content in zip(parts, packed.split([len(part) for part in parts]), strict=True):
                    part.copy_(content)

    def _copy(self, number: int) -> None:
        for placed, copy in self._copies.pop(number, ()):
            copy.run(self._slot(placed.holder, placed.slot))

    def _slot(self, rank: int, number: int) -> torch.Tensor:
        size = self._plan.slot_bytes
        return self._memory[rank][number * size : (number + 1) * size]


def _read_verified(store: ObjectStore, wanted: Sequence[tuple[Block, Sequence[memoryview]]]) -> None:
    """Blocks that follow each other in one segment, each into memory of its own."""
    first = wanted[0][0]
    store.read_into(first.segment.key, first.start, *(buffer for _, buffers in wanted for buffer in buffers))
    for block, buffers in wanted:
        found, expected = reduce(lambda crc, buffer: crc64(buffer, crc), buffers, 0), block.segment.block_crcs[block.number]
        if found != expected:
            raise CorruptObject(f"'{block.segment.key}' block {block.number} is damaged: CRC-64 {found:016x}, expected {expected:016x}.")
