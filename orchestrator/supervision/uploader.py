"""The uploader: a process beside the ranks of a job on a node. What they have staged goes to the store while they train on.

    python -m orchestrator.supervision.uploader

It reads JSON lines from its standard input, which its agent holds; when that ends, it removes the slabs and leaves:

    {"op": "open", "storage", "folder", "stem", "agent_socket", "bytes_per_s"}    first; the store's keys are in the environment
    {"op": "begin", "epoch"}                             staged state of older epochs is not wanted any more
    {"op": "staged", "slab", "epoch", "rank", "step" ...}    a rank's message; when its state is in the store, it goes back as `saved`

It says `saved` and `error` to the agent's socket like a rank.
"""

from __future__ import annotations

import json
import logging
import os
import queue
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from orchestrator.checkpoints.slab import Slab, SlabState, Staged, is_constant, read_staged, remove_slabs, slabs_of
from orchestrator.checkpoints.upload import Stored, named_rows, store_index, store_rows
from orchestrator.runtime.failure import describe
from orchestrator.runtime.link import AgentLink
from orchestrator.spec import StorageSpec, from_dict
from orchestrator.storage import ObjectStore, open_store
from orchestrator.supervision.patience import persist

CONNECTIONS = 8
"""Segments on their way at once."""
log = logging.getLogger("orchestrator.uploader")

Message = dict[str, Any]


class Pace:
    """At most `bytes_per_s` on average over all threads; 0: no limit."""

    def __init__(
        self, bytes_per_s: float, clock: Callable[[], float] = time.monotonic, sleep: Callable[[float], None] = time.sleep
    ) -> None:  # fmt: skip
        self._bytes_per_s = bytes_per_s
        self._clock = clock
        self._sleep = sleep
        self._next_s = 0.0
        self._lock = threading.Lock()

    def wait(self, num_bytes: int) -> None:
        """Until these bytes may be sent."""
        if not self._bytes_per_s:
            return
        with self._lock:
            begin = max(self._clock(), self._next_s)
            self._next_s = begin + num_bytes / self._bytes_per_s
        self._sleep(max(0.0, begin - self._clock()))


class Uploader:
    """One thread per writer, so that its saves stay in order; `tell` is called on these threads."""

    def __init__(self, store: ObjectStore, folder: Path, stem: str, tell: Callable[[Message], None], pace: Pace | None = None) -> None:
        self._store = store
        self._folder = folder
        self._stem = stem
        self._tell = tell
        self._pace = pace or Pace(0)
        self._pool = ThreadPoolExecutor(CONNECTIONS, thread_name_prefix="segment")
        self._queues: dict[int, queue.SimpleQueue[Message]] = {}
        self._waiting: set[str] = set()
        self._lock = threading.Lock()
        self._epoch = 0

    def begin(self, epoch: int) -> None:
        """Nothing of older epochs will be committed: what waits is dropped, their slabs that nobody has told of are free.

        What never changes is stored anew: its bytes may be what made the epoch before end.
        """
        self._epoch = epoch
        with self._lock:
            for path in slabs_of(self._folder, self._stem):
                staged = _staged(path)
                if str(path) in self._waiting or staged is None or staged.epoch >= epoch:
                    continue
                slab = Slab.open(path)
                if is_constant(path):
                    slab.describe(replace(staged, prefix="", epoch=epoch))
                elif slab.state is SlabState.STAGED:
                    slab.state = SlabState.FREE

    def take(self, message: Message) -> None:
        """A rank's `staged`."""
        writer = message["rank"]
        with self._lock:
            self._waiting.add(message["slab"])
            if writer not in self._queues:
                self._queues[writer] = queue.SimpleQueue()
                threading.Thread(target=self._work, args=(self._queues[writer],), name=f"writer-{writer}", daemon=True).start()
        self._queues[writer].put(message)

    def _work(self, messages: queue.SimpleQueue[Message]) -> None:
        while True:
            message = messages.get()
            try:
                slab = Slab.open(Path(message["slab"]))
                self._upload_one(slab, message)
            except Exception as error:
                log.exception("step %d of rank %d is not saved", message["step"], message["rank"])
                whose = {name: message[name] for name in ("rank", "epoch", "step", "checkpoint")}
                self._tell({"type": "error", **whose, **describe(error, "")})
                with self._lock:  # its slab stays staged: the rank must not end as if all were saved
                    self._waiting.discard(message["slab"])
            else:
                with self._lock:
                    self._waiting.discard(message["slab"])
                    slab.state = SlabState.FREE

    def _upload_one(self, slab: Slab, message: Message) -> None:
        began = time.monotonic()

        def pause(delay_s: float) -> bool:
            time.sleep(delay_s)
            return False

        num_bytes = persist(lambda: self._store_slab(slab) if message["epoch"] >= self._epoch else None, pause)
        if num_bytes is None:
            log.info("step %d of epoch %d is not wanted any more", message["step"], message["epoch"])
            return
        seconds = time.monotonic() - began
        log.info("step %d of rank %d: %.1f MB in %.2f s", message["step"], message["rank"], num_bytes / 1e6, seconds)
        told = {name: value for name, value in message.items() if name != "slab"}
        self._tell({**told, "type": "saved", "num_bytes": num_bytes, "upload_s": seconds})

    def _store_slab(self, slab: Slab) -> int:
        """Returns the bytes that were sent."""
        staged = read_staged(slab.path)
        stored = self._store_rows(staged.prefix, staged, slab, 0)
        sent = sum(segment.num_bytes for segment in stored.segments)
        if staged.constant_slab:
            constant, is_new = self._constant(Path(staged.constant_slab), staged.prefix, len(stored.segments))
            stored, sent = stored + constant, sent + is_new * sum(segment.num_bytes for segment in constant.segments)
        store_index(self._store, staged.prefix, staged.writer, stored, staged.scalars)
        return sent

    def _constant(self, path: Path, prefix: str, first_segment: int) -> tuple[Stored, bool]:
        """What never changes goes to the store once and is named again from then on; whether this was that time."""
        slab, staged = Slab.open(path), read_staged(path)
        if staged.prefix:
            return named_rows(staged.prefix, staged.writer, staged.rows, slab.content, staged.first_segment, staged.crcs), False
        stored = self._store_rows(prefix, staged, slab, first_segment)
        slab.describe(replace(staged, prefix=prefix, first_segment=first_segment))
        return stored, True

    def _store_rows(self, prefix: str, staged: Staged, slab: Slab, first_segment: int) -> Stored:
        return store_rows(
            self._store, prefix, staged.writer, staged.rows, slab.content, self._pool, crcs=staged.crcs, first_segment=first_segment,
            before_each=self._pace.wait,
        )  # fmt: skip


def main() -> None:
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(asctime)s uploader %(levelname)s %(message)s")
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # it may be sent to all processes of the machine: the agent says when to leave
    opened = json.loads(sys.stdin.readline())
    try:
        link = AgentLink(Path(opened["agent_socket"]), rank=-1)
    except ConnectionRefusedError:  # the agent went while this process started: what its ranks have left goes too
        remove_slabs(Path(opened["folder"]), opened["stem"])
        return
    uploader = Uploader(
        open_store(from_dict(StorageSpec, opened["storage"])), Path(opened["folder"]), opened["stem"], partial(tell, link),
        Pace(opened["bytes_per_s"]),
    )  # fmt: skip
    for line in sys.stdin:
        take(uploader, json.loads(line))
    remove_slabs(Path(opened["folder"]), opened["stem"])
    os._exit(0)  # nobody is left to hear of what is on its way


def _staged(slab: Path) -> Staged | None:
    """None: nothing is said of it, or it is being written."""
    try:
        return read_staged(slab)
    except FileNotFoundError:
        return None


def tell(link: AgentLink, message: Mapping[str, Any]) -> None:
    link.send(message["type"], **{name: value for name, value in message.items() if name not in ("type", "time_s")})


def take(uploader: Uploader, message: Message) -> None:
    if message["op"] == "begin":
        uploader.begin(message["epoch"])
    else:
        uploader.take({name: value for name, value in message.items() if name != "op"})


if __name__ == "__main__":
    main()
