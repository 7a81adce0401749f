"""A rank's state is copied into host memory while it computes the next gradients: no step changes it before they are there."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from orchestrator.checkpoints.checksums import BlockChecksums, Crcs
from orchestrator.checkpoints.pieces import StatePiece
from orchestrator.checkpoints.slab import (
    CONSTANT,
    SEGMENT_BYTES,
    Row,
    Slab,
    SlabState,
    Staged,
    arrange,
    read_staged,
    size_of,
    slab_path,
)  # fmt: skip

POLL_S = 0.002
_COPY_BYTES = 512 * 1024
"""Copied at once: it is in the processor's cache still when its checksum is taken."""

log = logging.getLogger("orchestrator.rank")


def this_device() -> Callable[[], None]:
    """What makes the caller's GPU that of the thread which calls it: in a new thread the first one of the machine is."""
    return partial(torch.cuda.set_device, torch.cuda.current_device()) if torch.cuda.is_initialized() else lambda: None


class StagingRing:
    """The slabs of one rank, used in turn. The newest staged state stays in memory until its slab's turn comes again.

    `stem` begins the names of this rank's slabs in `folder`. `count` slabs: so many saves may be on their way at once. What `here()`
    returns on the caller's thread is called first on each thread that is begun for it.
    """

    def __init__(self, folder: Path, stem: str, count: int, here: Callable[[], Callable[[], None]] = this_device) -> None:
        self._paths = [slab_path(folder, stem, number) for number in range(count)]
        self._constant_path = slab_path(folder, stem, CONSTANT)
        self._slabs: list[Slab | None] = [None] * count
        self._constant_slab: str | None = None
        """Path; empty: nothing is constant; None: not staged yet."""
        self._here = here
        self._next = min(range(count), key=lambda number: _step(self._paths[number]))  # what an earlier process staged last stays longest
        self._preparation: threading.Thread | None = None
        self._copying: threading.Thread | None = None
        self._error: BaseException | None = None
        self.num_bytes = 0
        """Of the newest state, without what never changes."""
        self.stalled_s = 0.0
        """For so long it has held its caller up, in all."""

    def prepare(self, pieces: Iterable[StatePiece]) -> None:
        """Get the memory for state like `pieces`, beside whatever goes on; a save before it is ready waits for it."""
        needed = size_of(rows_of(pieces))
        self._preparation = self._begin("slabs", partial(self._get_memory, needed))

    def stage(
        self, pieces: Sequence[StatePiece], constant: Callable[[], Sequence[StatePiece]], waiting: Callable[[], None],
        done: Callable[[Path], None], *, job_id: str, epoch: int, step: int, prefix: str, writer: int, scalars: Mapping[str, Any],
    ) -> None:  # fmt: skip
        """Begin to copy `pieces` into a slab, and what `constant()` gives into one of its own the first time; `finish` before they change.

        `done(slab)` is called on another thread when the copy is there. Waits while all slabs are still being uploaded, and calls
        `waiting` meanwhile. Raises MemoryError.
        """
        self.finish()
        began = time.monotonic()
        if self._preparation is not None:
            self._preparation.join()
            self._preparation = None
        rows = rows_of(pieces)
        number = self._free(waiting)
        self.num_bytes = size_of(rows)
        slab = self._slab(number, self.num_bytes)
        slab.forget()
        staged = Staged(job_id=job_id, epoch=epoch, step=step, prefix=prefix, writer=writer, rows=tuple(rows), scalars=scalars)
        self._next = (number + 1) % len(self._slabs)
        self._copying = self._begin("staging", partial(self._copy, pieces, constant, slab, staged, done))
        self.stalled_s += time.monotonic() - began

    def finish(self) -> None:
        """Return when what was given to `stage` may change. Raises what went wrong with it."""
        if self._copying is not None:
            began = time.monotonic()
            self._copying.join()
            self._copying = None
            self.stalled_s += time.monotonic() - began
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    @property
    def copying(self) -> bool:
        """Whether `finish` is still to be called for the newest state, however far its copy is: the same on all ranks."""
        return self._copying is not None

    @property
    def busy(self) -> bool:
        """Whether anything is to be uploaded still, or copied."""
        copying = self._copying is not None and self._copying.is_alive()
        return copying or any(slab is not None and slab.state is SlabState.STAGED for slab in self._slabs)

    def drain(self, waiting: Callable[[], None]) -> None:
        """Return when nothing is to be uploaded any more."""
        self.finish()
        while self.busy:
            waiting()
            time.sleep(POLL_S)

    def _begin(self, name: str, work: Callable[[], None]) -> threading.Thread:
        enter = self._here()

        def run() -> None:
            try:
                enter()
                work()
            except BaseException as error:  # noqa: BLE001 - `finish` raises it, on the thread that waits for the copy
                self._error = error

        thread = threading.Thread(target=run, name=name, daemon=True)
        thread.start()
        return thread

    def _copy(
        self, pieces: Sequence[StatePiece], constant: Callable[[], Sequence[StatePiece]], slab: Slab, staged: Staged,
        done: Callable[[Path], None],
    ) -> None:  # fmt: skip
        crcs = _pack(pieces, staged.rows, slab)
        if self._constant_slab is None:
            self._constant_slab = self._stage_constant(constant(), staged)
        slab.describe(replace(staged, constant_slab=self._constant_slab, crcs=crcs))
        slab.state = SlabState.STAGED
        done(slab.path)

    def _free(self, waiting: Callable[[], None]) -> int:
        """The slab whose turn it is. One of a process before this one, which is on its way still, is waited for too."""
        number = self._next
        while True:
            slab = self._slabs[number] or _existing(self._paths[number])
            if slab is None or slab.state is SlabState.FREE:
                return number
            waiting()
            time.sleep(POLL_S)

    def _slab(self, number: int, num_bytes: int) -> Slab:
        held = self._slabs[number]
        if held is None or held.capacity < num_bytes:
            held = self._slabs[number] = _create(self._paths[number], num_bytes)
        return held

    def _stage_constant(self, pieces: Sequence[StatePiece], beside: Staged) -> str:
        rows = rows_of(pieces)
        if not rows:
            return ""
        if _holds(self._constant_path, rows):  # of a process before this one
            return str(self._constant_path)
        slab = _create(self._constant_path, size_of(rows))
        slab.forget()
        crcs = _pack(pieces, rows, slab)
        slab.describe(replace(beside, step=0, prefix="", rows=tuple(rows), scalars={}, crcs=crcs))
        return str(slab.path)

    def _get_memory(self, num_bytes: int) -> None:
        for number, path in enumerate(self._paths):
            if (existing := _existing(path)) is None or (existing.state is SlabState.FREE and existing.capacity < num_bytes):
                try:
                    self._slabs[number] = _create(path, num_bytes)
                except MemoryError as error:
                    log.warning("%s", error)  # the first save says so again, and fails
                    return


def _step(path: Path) -> int:
    """Of what lies in the slab; -1: nothing."""
    try:
        return read_staged(path).step
    except FileNotFoundError:
        return -1


def _existing(path: Path) -> Slab | None:
    try:
        return Slab.open(path)
    except FileNotFoundError:
        return None


def _holds(path: Path, rows: Sequence[Row]) -> bool:
    try:
        return read_staged(path).rows == tuple(rows)
    except FileNotFoundError:
        return False


def _create(path: Path, num_bytes: int) -> Slab:
    try:
        slab = Slab.create(path, num_bytes)
    except OSError as error:
        raise MemoryError(
            f"out of memory in {path.parent}: a checkpoint of {num_bytes / 1e9:.2f} GB of this rank is to be kept there while it is "
            f"uploaded: {error.strerror}. Give shared memory more room, or set checkpoint.buffers=1."
        ) from error
    if torch.cuda.is_initialized():
        _pin(slab)
    return slab


def _pin(slab: Slab) -> None:
    """A GPU copies into registered memory at the full rate of its bus."""
    content = torch.frombuffer(slab.content, dtype=torch.uint8)
    code = torch.cuda.cudart().cudaHostRegister(content.data_ptr(), content.numel(), 0)
    if int(code):
        log.warning("%s is not pinned (CUDA error %d): checkpoints stop the training for longer", slab.path, int(code))


def rows_of(pieces: Iterable[StatePiece]) -> list[Row]:
    """As they lie in a slab, one after the other; a piece longer than a segment is several."""
    return [
        part
        for piece in pieces
        for part in Row(
            name=piece.name, role=piece.role, dtype=str(piece.dtype).removeprefix("torch."), global_shape=tuple(piece.global_shape),
            start=piece.start, count=int(piece.data.numel()), item_bytes=piece.dtype.itemsize, block=piece.block,
        ).parts()
    ]  # fmt: skip


def _pack(pieces: Sequence[StatePiece], rows: Sequence[Row], slab: Slab) -> Crcs:
    """On a GPU by a stream of its own, behind what has been asked for so far, beside what is asked for next."""
    if not rows:
        return ()
    target = torch.frombuffer(slab.content, dtype=torch.uint8)
    device = pieces[0].data.device
    if device.type != "cuda":
        return pack_into(target, pieces, rows)
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.default_stream(device))
    with torch.cuda.stream(stream):
        crcs = pack_into(target, pieces, rows)
    stream.synchronize()
    return crcs


@torch.no_grad()
def pack_into(target: torch.Tensor, pieces: Sequence[StatePiece], rows: Sequence[Row]) -> Crcs:
    """Copy `pieces` to where `arrange(rows)` says. `target`: uint8, at least as long as that.

    Returns the checksums; none if anything comes from a GPU, which may be at it still.
    """
    on_gpu = any(piece.data.is_cuda for piece in pieces)
    step = SEGMENT_BYTES if on_gpu else _COPY_BYTES
    sources, crcs = _sources(pieces, rows), list[tuple[int, ...]]()
    for portion in arrange(rows):
        segment = target[portion.start : portion.start + portion.num_bytes]
        checksums = BlockChecksums(memoryview(segment.numpy()))
        for (offset, row), source in zip(portion.rows, sources, strict=False):
            for low in range(0, row.num_bytes, step):
                high = min(low + step, row.num_bytes)
                segment[offset + low : offset + high].copy_(source[low:high], non_blocking=on_gpu)
                if not on_gpu:
                    checksums.extend(offset + high)
        if not on_gpu:
            crcs.append(checksums.all())
    return tuple(crcs)


def _sources(pieces: Iterable[StatePiece], rows: Iterable[Row]) -> Iterator[torch.Tensor]:
    """The bytes of each row."""
    parts = iter(rows)
    for piece in pieces:
        data, done = piece.data.detach(), 0
        while done < data.numel():
            part = data[done : (done := done + next(parts).count)]
            yield part.to(piece.dtype).contiguous().view(torch.uint8)
