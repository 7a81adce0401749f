"""State comes back from the store into the tensors of any layout: what a rank wants is cut out of what the writers stored.

Ranks that restore together read each block once between them. A round: all have read their blocks of it and found them good; what other
nodes need is sent to them; each rank copies what it wants out of its node's memory, while threads read the next round's blocks.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch

from orchestrator.checkpoints.manifest import BLOCK_BYTES, Manifest, TensorSlice, crc64
from orchestrator.checkpoints.pieces import StatePiece
from orchestrator.checkpoints.plan import Box, boxes_of
from orchestrator.checkpoints.read_plan import Block, Line, Placed, ReadPlan, merged, plan_reads
from orchestrator.checkpoints.restore_peers import Alone, Peers, agreed
from orchestrator.errors import CorruptObject, IncompatibleCheckpoint
from orchestrator.storage import ObjectStore

THREADS = 8
_ALONE = Alone()


@dataclass(frozen=True, kw_only=True)
class _Copy:
    """Elements of the box `common` go from a stored box, which lies in one block, to a wanted one."""

    block: int
    offset: int
    """Byte offset of the stored box in the block."""
    source: Box
    target: Box
    target_data: torch.Tensor
    """Flat part of the wanted tensor that holds the box `target`."""
    common: Box

    def byte_range(self) -> tuple[int, int]:
        """Where in the line of all blocks the elements lie: from the first to the last."""
        item = self.target_data.element_size()
        first, last = _corners(self.source, self.common)
        begin = self.block * BLOCK_BYTES + self.offset
        return begin + first * item, begin + (last + 1) * item

    def run(self, block: torch.Tensor) -> None:
        """`block`: the bytes of the block, of which those of `byte_range` are good."""
        data = self.target_data
        held = block[self.offset : self.offset + self.source.volume * data.element_size()].view(data.dtype)
        data.view(self.target.shape)[self.common.within(self.target)] = held.view(self.source.shape)[self.common.within(self.source)]


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

    A block's checksum is verified before a byte of it reaches a tensor; a bad block is read once more. `tick` is called as the work goes
    on. With `needless`, every tensor of the checkpoint must be wanted by some rank, except those of the roles named there. A store may
    have `near(key) -> bool`, whether this node has the object itself, and `origin`, the store behind what is near.

    Raises CorruptObject naming object and block, IncompatibleCheckpoint naming the first tensor that is missing, differs or is left over,
    and the store's StorageError.
    """
    line = Line(manifest.segments)
    copies: dict[int, list[_Copy]] = defaultdict(list)
    with agreed(peers):
        for copy in _copies(line, manifest, wanted):
            copies[copy.block].append(copy)
    if needless is not None:
        _refuse_left_over(manifest, wanted, peers, needless)
    intervals = merged([copy.byte_range() for some in copies.values() for copy in some])
    needs = [found.reshape(-1, 2) for found in peers.gather(np.array(intervals, dtype=np.int64).reshape(-1))]
    plan = plan_reads(line, needs, _near(store, manifest, peers), peers.nodes)
    _Restore(store, line, plan, peers, copies).run(tick or (lambda: None))


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


def _copies(line: Line, manifest: Manifest, wanted: Sequence[StatePiece]) -> Iterator[_Copy]:
    stored = manifest.tensors()
    for piece in wanted:
        slices = stored.get((piece.role, piece.name), [])
        _check_same(piece, slices, manifest)
        parts = [(part, *_rows(part.boxes)) for part in slices]
        position = 0
        for target in piece.boxes:
            data = piece.data[position : position + target.volume]
            position += target.volume
            first, end = _rows([target])
            for part, low, high in parts:
                if low < end and first < high:
                    yield from _copies_of_box(line, part, target, data)


def _check_same(piece: StatePiece, slices: list[TensorSlice], manifest: Manifest) -> None:
    where = f"the checkpoint of {manifest.job_id} at step {manifest.step}"
    if not slices:
        raise IncompatibleCheckpoint(f"{where} has no {piece.role} of {piece.name}; it was made by another model or optimizer.")
    held, dtype = slices[0], str(piece.data.dtype).removeprefix("torch.")
    if held.global_shape != tuple(piece.global_shape) or held.dtype != dtype:
        raise IncompatibleCheckpoint(
            f"{piece.role} of {piece.name} is {held.dtype}{list(held.global_shape)} in {where}, "
            f"but {dtype}{list(piece.global_shape)} in this model."
        )


def _rows(boxes: Sequence[Box]) -> tuple[int, int]:
    """[first, end) along the first dimension: tells most of what does not meet apart at little cost."""
    if not boxes[0].shape:
        return 0, 1
    return min(box.offset[0] for box in boxes), max(box.offset[0] + box.shape[0] for box in boxes)


def _copies_of_box(line: Line, part: TensorSlice, target: Box, data: torch.Tensor) -> Iterator[_Copy]:
    """A stored box goes over from block to block; in each it is a few boxes."""
    item = data.element_size()
    begin = line.address(part.segment, part.offset)
    for source in part.boxes:
        common = source.intersect(target)
        if common:
            first, last = _corners(source, common)
            for block in range((begin + first * item) // BLOCK_BYTES, (begin + last * item) // BLOCK_BYTES + 1):
                low = max(block * BLOCK_BYTES - begin, 0) // item
                high = min((block + 1) * BLOCK_BYTES - begin, source.volume * item) // item
                offset = begin + low * item - block * BLOCK_BYTES
                for cut in boxes_of(source.shape, low, high):
                    here = cut.moved(source.offset)
                    mine = here.intersect(common)
                    if mine:
                        yield _Copy(block=block, offset=offset, source=here, target=target, target_data=data, common=mine)
                    offset += here.volume * item
        begin += source.volume * item


def _corners(source: Box, common: Box) -> tuple[int, int]:
    """Numbers of the first and the last element of `common` among those of `source`."""
    first = last = 0
    for size, offset, low, count in zip(source.shape, source.offset, common.offset, common.shape, strict=True):
        first = first * size + low - offset
        last = last * size + low - offset + count - 1
    return first, last


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

    def __init__(self, store: ObjectStore, line: Line, plan: ReadPlan, peers: Peers, copies: dict[int, list[_Copy]]) -> None:
        self._store = store
        self._line = line
        self._plan = plan
        self._peers = peers
        self._reads = plan.reads(peers.rank)
        self._copies: dict[int, list[tuple[Placed, _Copy]]] = defaultdict(list)
        at = plan.at(peers.nodes[peers.rank])
        for block, some in copies.items():
            self._copies[at[block].round] += [(at[block], copy) for copy in some]
        self._slots = plan.slots[peers.rank]
        self._futures: list[Future[None]] = []
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
        """Begin what has a free slot once the round `number` has begun: all ranks are through with those before."""
        ring = len({x.slot for x in self._reads})
        for index in range(len(self._futures), len(self._reads)):
            if index >= ring and self._reads[index - ring].round >= number:
                break
            self._futures.append(pool.submit(self._read, self._reads[index]))

    def _wait(self, number: int) -> None:
        for placed, future in zip(self._reads, self._futures, strict=False):
            if placed.round == number:
                future.result()

    def _read(self, placed: Placed) -> None:
        block = self._line.blocks[placed.block]
        buffer = memoryview(self._slot(placed.holder, placed.slot)[: block.num_bytes].numpy())
        try:
            _read_verified(self._store, block, buffer)
        except CorruptObject:  # bytes may be lost or changed on the way
            _read_verified(getattr(self._store, "origin", self._store), block, buffer)

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


def _read_verified(store: ObjectStore, block: Block, buffer: memoryview) -> None:
    store.read_into(block.segment.key, block.start, buffer)
    found, expected = crc64(buffer), block.segment.block_crcs[block.number]
    if found != expected:
        raise CorruptObject(f"'{block.segment.key}' block {block.number} is damaged: CRC-64 {found:016x}, expected {expected:016x}.")
