"""What goes from the blocks of a checkpoint into the tensors that are to be filled."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from orchestrator.checkpoints.manifest import BLOCK_BYTES, Manifest, TensorSlice
from orchestrator.checkpoints.pieces import StatePiece
from orchestrator.checkpoints.plan import Box, boxes_of
from orchestrator.checkpoints.read_plan import Line
from orchestrator.errors import IncompatibleCheckpoint

MAX_UNWANTED_BYTES = 1024 * 1024
"""Of a block that is read straight into tensors."""

Place = tuple[int, memoryview]
"""Byte offset in a block, and the memory in a tensor that the bytes from there on belong into."""


@dataclass(frozen=True, kw_only=True)
class Copy:
    """Elements of the box `common` go from a stored box, which lies in one block, to a wanted one."""

    block: int
    offset: int
    """Byte offset of the stored box in the block."""
    source: Box
    target: Box
    target_data: torch.Tensor
    """Flat part of the wanted tensor that holds the box `target`."""
    common: Box
    dtype: torch.dtype
    """Of what is stored."""

    def byte_range(self) -> tuple[int, int]:
        """Where in the line of all blocks the elements lie: from the first to the last."""
        item = self.dtype.itemsize
        first, last = _corners(self.source, self.common)
        begin = self.block * BLOCK_BYTES + self.offset
        return begin + first * item, begin + (last + 1) * item

    def run(self, block: torch.Tensor) -> None:
        """`block`: the bytes of the block, of which those of `byte_range` are good."""
        held = block[self.offset : self.offset + self.source.volume * self.dtype.itemsize].view(self.dtype)
        data = self.target_data
        data.view(self.target.shape)[self.common.within(self.target)] = held.view(self.source.shape)[self.common.within(self.source)]

    def place(self) -> Place | None:
        """None unless the elements follow each other in the block and in the tensor as they are, and this is in the host's memory."""
        data = self.target_data.detach()
        (low, high), (first, last) = _corners(self.source, self.common), _corners(self.target, self.common)
        as_they_are = data.dtype == self.dtype and high - low == last - first == self.common.volume - 1
        if data.device.type != "cpu" or not data.is_contiguous() or not as_they_are:
            return None
        return self.offset + low * data.element_size(), memoryview(data[first : last + 1].view(torch.uint8).numpy())


def copies_of(line: Line, manifest: Manifest, wanted: Sequence[StatePiece]) -> Iterator[Copy]:
    """All that fills `wanted`. Raises IncompatibleCheckpoint naming the first tensor that is missing or differs."""
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
                    yield from _copies_of_box(line, part, target, data, piece.dtype)


def places_of(copies: Sequence[Copy], num_bytes: int) -> list[Place] | None:
    """Where a block of `num_bytes`, of which `copies` are wanted, can be read to without a copy; None if it cannot."""
    found = [place for place in (copy.place() for copy in copies) if place]
    found.sort(key=lambda place: place[0])
    ends = [offset + len(memory) for offset, memory in found]
    overlap = any(offset < end for (offset, _), end in zip(found[1:], ends, strict=False))
    unwanted = num_bytes - sum(len(memory) for _, memory in found)
    return None if len(found) < len(copies) or overlap or unwanted > MAX_UNWANTED_BYTES else found


def whole_block(places: Sequence[Place], num_bytes: int) -> list[memoryview]:
    """The memory of `places` and, for what nobody wants between them, memory of its own: all bytes of the block in their order."""
    found, end = [], 0
    for offset, memory in places:
        found += [memoryview(bytearray(offset - end)), memory]
        end = offset + len(memory)
    return [*found, memoryview(bytearray(num_bytes - end))]


def _check_same(piece: StatePiece, slices: list[TensorSlice], manifest: Manifest) -> None:
    where = f"the checkpoint of {manifest.job_id} at step {manifest.step}"
    if not slices:
        raise IncompatibleCheckpoint(f"{where} has no {piece.role} of {piece.name}; it was made by another model or optimizer.")
    held, dtype = slices[0], str(piece.dtype).removeprefix("torch.")
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


def _copies_of_box(line: Line, part: TensorSlice, target: Box, data: torch.Tensor, dtype: torch.dtype) -> Iterator[Copy]:
    """A stored box goes over from block to block; in each it is a few boxes."""
    item = dtype.itemsize
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
                        yield Copy(block=block, offset=offset, source=here, target=target, target_data=data, common=mine, dtype=dtype)
                    offset += here.volume * item
        begin += source.volume * item


def _corners(source: Box, common: Box) -> tuple[int, int]:
    """Numbers of the first and the last element of `common` among those of `source`."""
    first = last = 0
    for size, offset, low, count in zip(source.shape, source.offset, common.offset, common.shape, strict=True):
        first = first * size + low - offset
        last = last * size + low - offset + count - 1
    return first, last
