"""What a rank and its node's agent say to each other, and the progress clock between them. Torch-free.

A rank writes JSON lines to the agent's Unix socket and reads none: orders come by the control byte of the clock. The clock is a
file of 192 bytes in shared memory per rank: `step` and `phase` are stores into mapped memory, so telling them costs no system call.

    offset  0  int64    step begun
    offset  8  int64    time.monotonic_ns() of the last tick
    offset 16  int64    changes of the phase since the step began: with the step, how far a rank has come
    offset 24  int64    Phase
    offset 32  uint8    Order, written by the agent
    offset 40  float64  seconds that 99 % of the steps have taken at most; 0: not known yet
    offset 48  int64    time.monotonic_ns() when the agent made the file: what passes from then on is accounted for
    offset 64  16 int64 nanoseconds spent in each Phase until the last tick

A word is written at once, so none is torn by the death of its rank (`struct.pack_into` clears what it is about to write).

Messages, each a dict with `type` and `rank` (every rank sends them; the supervisor expects those marked * of rank 0 only):

    hello      pid, host                                name of the machine
    device     gpu                                      the identity of the GPU that it computes on; none of a rank on CPUs
    phase      text                                     for people: `loading data` ...
    *prepared  dataset                                  content hash of the data set that is used
    restored   step, commit                             the group continues from it
    *started   first_step
    *metrics   step, values {name: float}               training metrics of a log step, and `time_s`
    *computed  step, steps, step_s, seconds [float]     by rank: what each takes for its own part of a step,
                                                        in the median of the `steps` steps up to this one
    *evaluated step, values {name: float}
    staged     step, checkpoint (key prefix), writer, slab, num_bytes, stage_s, spent_s    this rank's part of a checkpoint is in the slab;
                                                        goes to the uploader. `spent_s`: seconds by phase when the save began
    saved      the same, and num_bytes, upload_s        it is in the store; sent by the uploader in the rank's name
    *artifact  name                                     the object `artifacts/<name>` was written
    warning    message                                  for people; also of the agent, in a rank's name
    suspect    commit key, message                      bytes of a checkpoint were found damaged
    chaos      fault, step, text                        a fault of the chaos mode, which it brings upon itself next
    preempted                                           it got SIGTERM; it goes on until it is ordered to stop
    done       step, stopped (bool), why                left the loop at `step`, because of an order or at the end; `why` of an early end
    error      end_reason (EndReason name), remedy (Remedy name), message, traceback, fingerprint, echo (bool)

The agent adds `clock` (`Spent.to_dict`) to a rank's exit, and tells `clocks` {rank: the same} of all its ranks about once a second.
"""

from __future__ import annotations

import enum
import json
import mmap
import os
import socket
import struct
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CLOCK_BYTES = 192
_STEP, _TICKED, _MOVES, _PHASE, _CREATED, _SPENT, _END = 0, 1, 2, 3, 6, 8, 24
"""As numbers of int64 words."""


class Phase(enum.IntEnum):
    START = 0
    DATA = 1
    FORWARD = 2
    BACKWARD = 3
    OPTIMIZER = 4
    CHECKPOINT = 5
    EVALUATION = 6
    COLLECTIVE = 7
    END = 8
    COMPILE = 9  # the first step of a model that is compiled, up to the optimizer
    RESTORE = 10


class Order(enum.IntEnum):
    CONTINUE = 0
    DRAIN = 1  # finish the step, save, leave


@dataclass(frozen=True)
class Reading:
    """How far a rank has come, and when it last moved. Taken while the rank writes, so a field may be a tick older than another."""

    step: int
    moves: int
    """Changes of the phase since the step began."""
    phase: Phase
    ticked_s: float
    """Of the last tick, on the monotonic clock."""
    step_p99_s: float
    """Seconds that 99 % of its steps have taken at most; 0: not known yet."""


@dataclass(frozen=True)
class Spent:
    """What a rank has spent its time with, from the making of its clock to its last tick. Monotonic nanoseconds."""

    created_ns: int
    ticked_ns: int
    phase: Phase
    """That it was in since the last tick."""
    by_phase_ns: tuple[int, ...]
    """By the number of the phase."""

    @property
    def by_phase_s(self) -> list[float]:
        return [nanoseconds / 1e9 for nanoseconds in self.by_phase_ns[: len(Phase)]]

    def to_dict(self, monotonic_s: float, time_s: float) -> dict[str, Any]:
        """JSON-ready, as seconds since 1970; the two arguments are the same moment by both clocks."""
        offset_s = time_s - monotonic_s
        times = {"created_s": self.created_ns / 1e9 + offset_s, "ticked_s": self.ticked_ns / 1e9 + offset_s}
        return {**times, "phase": int(self.phase), "spent_s": self.by_phase_s}


class ProgressClock:
    """One rank's clock. The rank ticks it, the agent reads it and gives orders through it."""

    def __init__(self, path: Path, create: bool = False, now_ns: Callable[[], int] = time.monotonic_ns) -> None:
        flags = os.O_RDWR | (os.O_CREAT if create else 0)
        descriptor = os.open(path, flags, 0o600)
        try:
            if create:
                os.ftruncate(descriptor, CLOCK_BYTES)
            self._memory = mmap.mmap(descriptor, CLOCK_BYTES)
        finally:
            os.close(descriptor)
        self._words = memoryview(self._memory).cast("q")
        if create:
            self._words[_CREATED] = now_ns()
        self._now_ns = now_ns
        self._step, self._moves, self._phase = 0, 0, Phase.START
        self._ticked_ns = self._words[_CREATED]
        self._spent_at = _SPENT + Phase.START

    def tick(self, step: int, phase: Phase) -> None:
        """What was done until now ends, `phase` of `step` begins. For one thread at a time."""
        now, words = self._now_ns(), self._words
        words[self._spent_at] += now - self._ticked_ns
        if step != self._step:
            self._step, self._moves, self._phase, self._spent_at = step, 0, phase, _SPENT + phase
            words[_STEP], words[_MOVES], words[_PHASE] = step, 0, phase
        elif phase is not self._phase:
            self._moves, self._phase, self._spent_at = self._moves + 1, phase, _SPENT + phase
            words[_MOVES], words[_PHASE] = self._moves, phase
        self._ticked_ns = words[_TICKED] = now

    def learn(self, step_p99_s: float) -> None:
        """How long steps take, for who watches for hangs."""
        struct.pack_into("=d", self._memory, 40, step_p99_s)

    def read(self) -> Reading:
        step, nanoseconds, moves, phase = self._words[_STEP : _PHASE + 1]
        (step_p99_s,) = struct.unpack_from("=d", self._memory, 40)
        return Reading(step=step, moves=moves, phase=Phase(phase), ticked_s=nanoseconds / 1e9, step_p99_s=step_p99_s)

    def spent(self) -> Spent:
        """Of a rank that has died too. Of one that ticks meanwhile, both parts are of the same tick, unless it ticks without pause."""
        words, created_ns = self._words, self._words[_CREATED]
        for _ in range(3):
            ticked_ns, phase, spent = words[_TICKED], words[_PHASE], tuple(words[_SPENT:_END])
            if ticked_ns == words[_TICKED]:
                break
        # A rank that is killed within a tick has told the first part of it: what was spent.
        return Spent(created_ns, max(ticked_ns, created_ns + sum(spent)), Phase(phase), spent)

    def give(self, order: Order) -> None:
        self._memory[32] = order

    def order(self) -> Order:
        return Order(self._memory[32])

    def close(self) -> None:
        self._words.release()
        self._memory.close()


class AgentLink:
    """A rank's line to its agent, for all its threads. If the agent is gone, so is the rank's reason to be: the
    send raises and the rank ends."""

    def __init__(self, path: Path, rank: int) -> None:
        self._rank = rank
        self._lock = threading.Lock()
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.connect(str(path))

    def send(self, type_: str, **fields: Any) -> None:
        message = {"type": type_, "rank": self._rank, "time_s": time.time(), **fields}
        with self._lock:
            self._socket.sendall(json.dumps(message).encode() + b"\n")

    @property
    def agent_pid(self) -> int:
        """The process that listened when this side connected."""
        credentials = struct.Struct("3i")  # ucred of unix(7): pid, uid, gid
        pid, _, _ = credentials.unpack(self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, credentials.size))
        return int(pid)

    def close(self) -> None:
        self._socket.close()
