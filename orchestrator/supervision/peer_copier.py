"""What a node's ranks have staged is copied into the memory of one other node, its peer: the next in the ring of the job's nodes.

One thread of low priority beside training, which nothing waits for. Of steps that wait only the newest is copied. A rank may write its slab
again meanwhile; the copy is then given up before it is whole, and the newer state is copied instead.
"""

from __future__ import annotations

import enum
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import ray
from ray.exceptions import RayError

from orchestrator.checkpoints.manifest import crc64
from orchestrator.checkpoints.peer_copies import Answer, CopyId, Message
from orchestrator.checkpoints.slab import Slab, Staged, arrange, read_staged, size_of
from orchestrator.errors import ClusterError
from orchestrator.supervision.uploader import Pace
from orchestrator.supervision.uploader_child import NICENESS

CHUNK_BYTES = 8 * 1024 * 1024
"""Sent as one; so many at once as `IN_FLIGHT` says lie in Ray's object store."""
IN_FLIGHT = 2
ANSWER_LIMIT_S = 60.0

log = logging.getLogger("orchestrator.agent")


class Peer(Protocol):
    """Who holds the copies: `PeerCopies` itself, or that of another node. Raises what its methods raise, and ClusterError."""

    def open(self, copy: CopyId, staged: Staged) -> Answer: ...

    def write(self, copy: CopyId, start: int, data: np.ndarray, crc: int) -> bool: ...

    def complete(self, copy: CopyId, constant: tuple[str, int] | None, message: Message) -> bool: ...


class AgentPeer:
    """The copies in another node's agent, over Ray, which authenticates. Bytes are on their way while the next are read."""

    def __init__(self, agent: Any) -> None:
        self._agent = agent
        self._answers: deque[tuple[CopyId, Any]] = deque()

    def open(self, copy: CopyId, staged: Staged) -> Answer:
        if not self._all_taken(copy):
            return Answer.REFUSED
        answer: Answer = self._get(self._agent.open_copy.remote(copy, staged))
        return answer

    def write(self, copy: CopyId, start: int, data: np.ndarray, crc: int) -> bool:
        self._answers.append((copy, self._agent.write_copy.remote(copy, start, data, crc)))
        return len(self._answers) < IN_FLIGHT or bool(self._get(self._answers.popleft()[1]))

    def complete(self, copy: CopyId, constant: tuple[str, int] | None, message: Message) -> bool:
        return self._all_taken(copy) and bool(self._get(self._agent.complete_copy.remote(copy, constant, message)))

    def _all_taken(self, copy: CopyId) -> bool:
        """Wait for what is on its way. What belongs to a copy that was given up is of no interest."""
        sent = [answer for of, answer in self._answers if (of.writer, of.checkpoint) == (copy.writer, copy.checkpoint)]
        self._answers.clear()
        taken = [self._get(answer) for answer in sent]
        return all(taken)

    def _get(self, answer: Any) -> Any:
        try:
            return ray.get(answer, timeout=ANSWER_LIMIT_S)
        except RayError as error:
            lines = str(error).strip().splitlines()
            raise ClusterError(lines[-1] if lines else type(error).__name__) from error


class _Outcome(enum.Enum):
    WHOLE = "whole"
    OVERTAKEN = "overtaken"  # the rank has written its slab again
    UNWANTED = "unwanted"  # its epoch is over


class PeerCopier:
    """`warn(message, why)` is called once, on the copying thread, when a copy fails: with the rank's message and the reason."""

    def __init__(self, bundle: int, bytes_per_s: float, warn: Callable[[Message, str], None]) -> None:
        """`bytes_per_s`: at most, on average; 0: no limit."""
        self._bundle = bundle
        self._pace = Pace(bytes_per_s)
        self._warn = warn
        self._warned = False
        self._changed = threading.Condition()
        self._epoch = 0
        self._peer: Peer | None = None
        self._num_ranks = 0
        self._waiting: dict[str, list[Message]] = {}
        """Key prefix -> what its ranks have staged, oldest first."""
        self._first: dict[int, tuple[str, int]] = {}
        """Writer -> where the uploader puts what never changes in this epoch: with what was staged first, behind its own segments."""
        threading.Thread(target=self._work, name="peer copies", daemon=True).start()

    def begin(self, epoch: int, peer: Peer | None, num_ranks: int) -> None:
        """Copy what `num_ranks` ranks stage from now on to `peer`; None: nothing."""
        with self._changed:
            self._epoch, self._peer, self._num_ranks = epoch, peer, num_ranks
            self._waiting.clear()
            self._first.clear()

    def take(self, message: Message) -> None:
        """A rank's `staged`."""
        with self._changed:
            if self._peer is not None and message["epoch"] == self._epoch:
                if message["writer"] not in self._first:
                    self._first[message["writer"]] = _after_own_segments(message)
                self._waiting.setdefault(message["checkpoint"], []).append(message)
                self._changed.notify()

    def close(self) -> None:
        self.begin(-1, None, 0)

    def _work(self) -> None:
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICENESS)
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._ready() is not None)
                peer, messages = self._peer, self._take_newest()
            if peer is not None:
                self._copy_step(peer, messages)

    def _ready(self) -> str | None:
        """The newest step that all ranks of this node have staged."""
        whole = [prefix for prefix, messages in self._waiting.items() if len(messages) == self._num_ranks]
        return whole[-1] if whole else None

    def _take_newest(self) -> list[Message]:
        """What waits before it is dropped."""
        newest, messages = self._ready(), list[Message]()
        for prefix in list(self._waiting):
            messages = self._waiting.pop(prefix)
            if prefix == newest:
                break
        return messages

    def _copy_step(self, peer: Peer, messages: list[Message]) -> None:
        began = time.monotonic()
        for message in messages:
            try:
                outcome = self._copy(peer, message)
            except Exception as error:  # noqa: BLE001 - whatever it is, training goes on, and it is told
                self._give_up(message, f"{type(error).__name__}: {error}")
                return
            if outcome is not _Outcome.WHOLE:
                log.info("the copy of step %d of rank %d is %s", message["step"], message["rank"], outcome.value)
                return
        log.info("step %d of %d ranks lies on the peer too, after %.2f s", messages[0]["step"], len(messages), time.monotonic() - began)

    def _give_up(self, message: Message, why: str) -> None:
        """For this epoch."""
        with self._changed:
            if message["epoch"] != self._epoch:
                return  # the peer's end is the group's
            self._peer = None
            self._waiting.clear()
        log.warning("no copy of step %d: %s", message["step"], why)
        if not self._warned:
            self._warned = True
            self._warn(message, why)

    def _copy(self, peer: Peer, message: Message) -> _Outcome:
        path = Path(message["slab"])
        copy = CopyId(owner=self._bundle, epoch=message["epoch"], writer=message["writer"], checkpoint=message["checkpoint"])
        staged = _still(path, copy)
        if staged is None:
            return _Outcome.OVERTAKEN
        constant = None
        if staged.constant_slab:
            constant = self._where_constant_lies(copy)
            outcome = self._send_constant(peer, replace(copy, constant=True), Path(staged.constant_slab))
            if outcome is not _Outcome.WHOLE:
                return outcome
        if peer.open(copy, staged) is not Answer.SEND or not self._send(peer, copy, Slab.open(path), size_of(staged.rows)):
            return _Outcome.UNWANTED
        if _still(path, copy) is None:
            return _Outcome.OVERTAKEN
        return _Outcome.WHOLE if peer.complete(copy, constant, message) else _Outcome.UNWANTED

    def _where_constant_lies(self, copy: CopyId) -> tuple[str, int]:
        """As this node's uploader has it, too, so that an index that both write is the same, byte for byte."""
        prefix, first_segment = self._first.get(copy.writer, ("", 0))
        return ("", 0) if prefix == copy.checkpoint else (prefix, first_segment)

    def _send_constant(self, peer: Peer, copy: CopyId, path: Path) -> _Outcome:
        staged = read_staged(path)
        answer = peer.open(copy, staged)
        if answer is Answer.SEND and self._send(peer, copy, Slab.open(path), size_of(staged.rows)):
            return _Outcome.WHOLE
        return _Outcome.WHOLE if answer is Answer.HELD else _Outcome.UNWANTED

    def _send(self, peer: Peer, copy: CopyId, slab: Slab, num_bytes: int) -> bool:
        """False: it is not wanted any more."""
        content = np.frombuffer(slab.content, dtype=np.uint8)
        for start in range(0, num_bytes, CHUNK_BYTES):
            data = content[start : min(start + CHUNK_BYTES, num_bytes)].copy()  # its rank may write it again
            self._pace.wait(len(data))
            if copy.epoch != self._epoch or not peer.write(copy, start, data, crc64(data.data)):
                return False
        return True


def _still(path: Path, copy: CopyId) -> Staged | None:
    """What lies in the slab, if that is what is copied still."""
    try:
        staged = read_staged(path)
    except FileNotFoundError:
        return None
    return staged if staged.prefix == copy.checkpoint else None


def _after_own_segments(message: Message) -> tuple[str, int]:
    """(prefix, number of the first segment behind those of the slab)."""
    try:
        return message["checkpoint"], len(arrange(read_staged(Path(message["slab"])).rows))
    except FileNotFoundError:  # written again within a moment
        return "", 0
