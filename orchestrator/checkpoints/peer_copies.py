"""Copies of another node's slabs in this node's memory: what is left of its newest state when that node is lost. Torch-free.

A copy is a slab like any other, under this node's stem and `of-<owner>`: whoever reads or removes this node's slabs handles it too.
It is described last, when all its bytes are there and good; so a torn one is never seen. For each writer of the owner there are two: the
newest whole copy, and the one being received. What never changes has one of its own.
"""

from __future__ import annotations

import enum
import os
import threading
from collections import defaultdict
from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from orchestrator.checkpoints.manifest import crc64
from orchestrator.checkpoints.slab import CONSTANT, HEADER_BYTES, Slab, SlabState, Staged, read_staged, size_of, slab_path
from orchestrator.errors import CorruptObject

LEAST_FREE_SHARE = 0.1
"""Of the machine's memory, and of the room where slabs lie: a copy that would leave less is not taken."""

Message = dict[str, Any]


class Answer(enum.StrEnum):
    SEND = "send"
    HELD = "held"  # what never changes is here already
    REFUSED = "refused"  # its epoch is over, or its owner counts as lost


@dataclass(frozen=True, kw_only=True)
class CopyId:
    """One copy, from its offer to its end."""

    owner: int
    """Bundle of the node that it is a copy of."""
    epoch: int
    writer: int
    checkpoint: str
    """Key prefix; of what never changes, of the checkpoint that it is sent along with."""
    constant: bool = False

    @property
    def place(self) -> tuple[int, int, bool]:
        return self.owner, self.writer, self.constant


@dataclass
class _Incoming:
    id: CopyId
    slab: Slab
    staged: Staged
    received_bytes: int = 0

    @property
    def whole(self) -> bool:
        return self.received_bytes == size_of(self.staged.rows)


class PeerCopies:
    """All methods may be called from any thread."""

    def __init__(self, folder: Path, stem: str) -> None:
        """`stem` begins the names of this node's slabs in `folder`."""
        self._folder = folder
        self._stem = stem
        self._epoch = 0
        self._lock = threading.Lock()
        self._incoming: dict[tuple[int, int, bool], _Incoming] = {}
        self._whole: dict[tuple[int, int], dict[Path, Message]] = defaultdict(dict)
        """(owner, writer) -> slab -> the rank's `staged`, as if it had been staged here. Of this epoch."""
        self._lost: set[int] = set()
        self._closed = False

    def begin(self, epoch: int) -> None:
        """Nothing of older epochs will be committed. Their copies stay to be read, until newer ones take their place."""
        with self._lock:
            self._epoch = epoch
            self._incoming.clear()
            self._whole.clear()
            self._lost.clear()

    def open(self, copy: CopyId, staged: Staged) -> Answer:
        """A copy of what `staged` describes is offered: whether its bytes are wanted. Raises MemoryError if there is no room."""
        with self._lock:
            if self._closed or copy.epoch != self._epoch or copy.owner in self._lost:
                return Answer.REFUSED
            path = self._place(copy)
            known = _staged(path)
            if copy.constant and known is not None and known.rows == staged.rows:
                return Answer.HELD
            self._whole[copy.owner, copy.writer].pop(path, None)
            self._incoming[copy.place] = _Incoming(copy, _room(path, size_of(staged.rows)), staged)
            return Answer.SEND

    def write(self, copy: CopyId, start: int, data: np.ndarray, crc: int) -> bool:
        """Bytes of it: uint8, from `start` of the packed bytes on. False: it is not received any more. Raises CorruptObject."""
        found = crc64(data.data)
        if found != crc:
            raise CorruptObject(f"bytes of '{copy.checkpoint}' came damaged: CRC-64 {found:016x}, expected {crc:016x}.")
        with self._lock:
            incoming = self._incoming.get(copy.place)
            if incoming is None or incoming.id != copy:
                return False
            np.copyto(np.frombuffer(incoming.slab.content, dtype=np.uint8, count=len(data), offset=start), data)
            incoming.received_bytes += len(data)
            return True

    def complete(self, copy: CopyId, constant: tuple[str, int] | None, message: Message) -> bool:
        """All bytes were sent: from now on it is a copy. False: they are not all here.

        `constant`: (prefix, first segment) of what never changes and was sent before; None: there is none. `message`: the rank's `staged`.
        """
        with self._lock:
            incoming = self._incoming.pop(copy.place, None)
            if incoming is None or incoming.id != copy or not incoming.whole:
                return False
            constant_slab = ""
            if constant is not None:
                constant_slab = self._describe_constant(replace(copy, constant=True), *constant)
                if not constant_slab:
                    return False
            incoming.slab.describe(replace(incoming.staged, constant_slab=constant_slab))
            path = incoming.slab.path
            self._whole[copy.owner, copy.writer][path] = {**message, "slab": str(path)}
            return True

    def adopt(self, owner: int, unsaved: Collection[tuple[int, str]]) -> list[Message]:
        """The owner is lost, and nothing of it is taken in this epoch any more.

        `unsaved`: (writer, key prefix) of what it had staged that may not be in the store. What of that is here counts as staged here from
        now on; returns the messages by which this node's uploader takes it, in the order of steps.
        """
        with self._lock:
            self._lost.add(owner)
            self._incoming = {place: incoming for place, incoming in self._incoming.items() if place[0] != owner}
            found = []
            for (whose, writer), messages in self._whole.items():
                if whose == owner:
                    found += [message for message in messages.values() if (writer, message["checkpoint"]) in unsaved]
                    self._store_constant_anew(owner, writer, unsaved)
            for message in found:
                Slab.open(Path(message["slab"])).state = SlabState.STAGED
            return sorted(found, key=lambda message: (message["step"], message["writer"]))

    def close(self) -> None:
        """Take nothing any more: the slabs are about to be removed."""
        with self._lock:
            self._closed = True
            self._incoming.clear()

    def _place(self, copy: CopyId) -> Path:
        """Of two, the one that does not hold the newest whole copy."""
        stem = f"{self._stem}-of-{copy.owner}-{copy.writer}"
        if copy.constant:
            return slab_path(self._folder, stem, CONSTANT)
        return min((slab_path(self._folder, stem, number) for number in range(2)), key=_age)

    def _describe_constant(self, copy: CopyId, prefix: str, first_segment: int) -> str:
        """Path of the slab; empty if it is not whole."""
        path = self._place(copy)
        incoming = self._incoming.pop(copy.place, None)
        staged = incoming.staged if incoming is not None and incoming.whole else _staged(path)
        if staged is None:
            return ""
        described = replace(staged, epoch=copy.epoch, prefix=prefix, first_segment=first_segment)
        if described != _staged(path):
            Slab.open(path).describe(described)
        return str(path)

    def _store_constant_anew(self, owner: int, writer: int, unsaved: Collection[tuple[int, str]]) -> None:
        """It lies under a checkpoint that may not be in the store itself: it goes there with the first that does."""
        path = self._place(CopyId(owner=owner, epoch=self._epoch, writer=writer, checkpoint="", constant=True))
        staged = _staged(path)
        if staged is not None and (writer, staged.prefix) in unsaved:
            Slab.open(path).describe(replace(staged, prefix="", first_segment=0))


def _staged(path: Path) -> Staged | None:
    """None: nothing is said of it, or it is not there."""
    try:
        return read_staged(path)
    except FileNotFoundError:
        return None


def _age(path: Path) -> tuple[int, int]:
    """What is not whole comes first, then what is oldest."""
    staged = _staged(path)
    return (0, 0) if staged is None else (staged.epoch, staged.step)


def _room(path: Path, num_bytes: int) -> Slab:
    """A slab of which nothing is said. The node's own ranks go first: nothing they may need is taken. Raises MemoryError."""
    _check_room(path, num_bytes + HEADER_BYTES - (path.stat().st_size if path.exists() else 0))
    try:
        slab = Slab.create(path, num_bytes)
    except OSError as error:
        raise MemoryError(f"{path.parent} has no room for a copy of {num_bytes / 1e9:.2f} GB: {error.strerror}") from error
    slab.forget()
    slab.state = SlabState.FREE
    return slab


def _check_room(path: Path, wanted_bytes: int) -> None:
    if wanted_bytes <= 0:
        return
    place, memory = os.statvfs(path.parent), psutil.virtual_memory()
    rooms = {
        str(path.parent): (place.f_bavail * place.f_frsize, place.f_blocks * place.f_frsize),
        "memory": (memory.available, memory.total),
    }
    for name, (free, total) in rooms.items():
        if free - wanted_bytes < LEAST_FREE_SHARE * total:
            raise MemoryError(
                f"a copy of {wanted_bytes / 1e9:.2f} GB would leave less than {LEAST_FREE_SHARE:.0%} of {name} ({total / 1e9:.1f} GB) free"
            )
