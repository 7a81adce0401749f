"""What a rank and its node's agent say to each other, and the progress clock between them. Torch-free.

A rank writes JSON lines to the agent's Unix socket and reads none: orders come by the control byte of the clock. The clock is a
file of 64 bytes in shared memory per rank: `step` and `phase` are stores into mapped memory, so telling them costs no system call.

    offset  0  int64    step begun
    offset  8  int64    time.monotonic_ns() of the last tick
    offset 16  int64    changes of the phase since the step began: with the step, how far a rank has come
    offset 24  uint8    Phase
    offset 32  uint8    Order, written by the agent
    offset 40  float64  seconds that 99 % of the steps have taken at most; 0: not known yet

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
    staged     step, checkpoint (key prefix), writer, slab, num_bytes, stage_s    this rank's part of a checkpoint is in the slab; goes to
                                                        the uploader
    saved      the same, and num_bytes, upload_s        it is in the store; sent by the uploader in the rank's name
    *artifact  name                                     the object `artifacts/<name>` was written
    warning    message                                  for people; also of the agent, in a rank's name
    suspect    commit key, message                      bytes of a checkpoint were found damaged
    preempted                                           it got SIGTERM; it goes on until it is ordered to stop
    done       step, stopped (bool), why                left the loop at `step`, because of an order or at the end; `why` of an early end
    error      end_reason (EndReason name), remedy (Remedy name), message, traceback, fingerprint, echo (bool)
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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CLOCK_BYTES = 64


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


class ProgressClock:
    """One rank's clock. The rank ticks it, the agent reads it and gives orders through it."""

    def __init__(self, path: Path, create: bool = False) -> None:
        flags = os.O_RDWR | (os.O_CREAT if create else 0)
        descriptor = os.open(path, flags, 0o600)
        try:
            if create:
                os.ftruncate(descriptor, CLOCK_BYTES)
            self._memory = mmap.mmap(descriptor, CLOCK_BYTES)
        finally:
            os.close(descriptor)
        self._step, self._moves, self._phase = 0, 0, Phase.START

    def tick(self, step: int, phase: Phase) -> None:
        if step != self._step:
            self._step, self._moves, self._phase = step, 0, phase
        elif phase is not self._phase:
            self._moves, self._phase = self._moves + 1, phase
        struct.pack_into("=qqqB", self._memory, 0, step, time.monotonic_ns(), self._moves, phase)

    def learn(self, step_p99_s: float) -> None:
        """How long steps take, for who watches for hangs."""
        struct.pack_into("=d", self._memory, 40, step_p99_s)

    def read(self) -> Reading:
        step, nanoseconds, moves, phase = struct.unpack_from("=qqqB", self._memory, 0)
        (step_p99_s,) = struct.unpack_from("=d", self._memory, 40)
        return Reading(step=step, moves=moves, phase=Phase(phase), ticked_s=nanoseconds / 1e9, step_p99_s=step_p99_s)

    def give(self, order: Order) -> None:
        self._memory[32] = order

    def order(self) -> Order:
        return Order(self._memory[32])

    def close(self) -> None:
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

    def close(self) -> None:
        self._socket.close()
