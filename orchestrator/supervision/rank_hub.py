"""One node's ranks of one job: forked by the warm process, heard over a Unix socket. No Ray.

One thread reads all sockets. What the ranks say and how they end is passed on in order: a rank's last words before its exit.
"""

from __future__ import annotations

import json
import logging
import selectors
import signal
import socket
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from orchestrator.errors import ClusterError
from orchestrator.supervision.vital import start_vital

log = logging.getLogger("orchestrator.agent")

Message = dict[str, Any]
Deliver = Callable[[list[Message]], None]
KILL_LIMIT_S = 30.0
BEAT_S = 10.0
"""How long nothing is delivered at most."""
BATCH_S = 0.01
"""Messages within this time travel together."""
MORE_TRIES = 1
"""How often ranks are asked of another warm process, because the one before left without a word to the request."""


@dataclass(frozen=True, kw_only=True)
class Fork:
    """A request for one rank."""

    rank: int
    task: dict[str, Any]
    env: dict[str, str]
    log: str


@dataclass
class Line:
    """A connection that speaks in JSON lines."""

    connection: socket.socket
    unread: bytes = b""

    def read(self) -> tuple[list[Message], bool]:
        """(complete messages, whether the other side has closed)."""
        try:
            data = self.connection.recv(1 << 20, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return [], False
        except OSError:
            data = b""
        *lines, self.unread = (self.unread + data).split(b"\n")
        return [json.loads(line) for line in lines], not data


@dataclass
class Living:
    """Ranks that have been asked for and whose end has not been reported; `pids` are known once they started."""

    epoch: int = 0
    forks: Sequence[Fork] = ()
    more_tries: int = MORE_TRIES
    answered: bool = False
    """The warm process has begun with them."""
    ranks: set[int] = field(default_factory=set)
    pids: dict[int, int] = field(default_factory=dict)
    greeted: set[int] = field(default_factory=set)


class RankHub:
    """`deliver` is called on the hub's thread with messages, each of which carries its `epoch`: that of the
    living ranks, unless it says itself which it speaks of. When none has come for `beat_s`, it is called with none: the hub lives.
    `facts(rank)` are added to the message of a rank's exit."""

    def __init__(
        self, listen_at: Path, connect_warm: Callable[[], socket.socket], deliver: Deliver, facts: Callable[[int], Message],
        beat_s: float = BEAT_S,
    ) -> None:  # fmt: skip
        self._beat_s = beat_s
        self._connect_warm = connect_warm
        self._deliver = deliver
        self._facts = facts
        self._warm: Line | None = None
        self._living = Living()
        self._changed = threading.Condition()
        self._selector = selectors.DefaultSelector()
        listen_at.unlink(missing_ok=True)
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(str(listen_at))
        listen_at.chmod(0o600)
        self._listener.listen(1024)
        self._selector.register(self._listener, selectors.EVENT_READ, self._accept)
        self._join_warm()
        start_vital("ranks", self._run)

    # orders, from any thread

    def start(self, epoch: int, forks: Sequence[Fork]) -> None:
        """Ask for the ranks of an epoch; those of the epoch before must be gone. Raises ClusterError."""
        with self._changed:
            if self._living.ranks:
                raise ClusterError(f"ranks {sorted(self._living.ranks)} of epoch {self._living.epoch} are still alive")
            if self._warm is None:
                self._join_warm()
            self._living = Living(epoch, forks, ranks={fork.rank for fork in forks})
            self._ask_for_ranks()

    def kill(self) -> None:
        """SIGKILL all ranks and wait until they are gone. Raises ClusterError if one does not go."""
        with self._changed:
            self._living.more_tries = 0
            if self._living.ranks:
                self._ask(op="kill", rank=None, signal=int(signal.SIGKILL))
            if not self._changed.wait_for(lambda: not self._living.ranks, KILL_LIMIT_S):
                raise ClusterError(f"ranks {sorted(self._living.ranks)} did not end within {KILL_LIMIT_S:.0f} s of SIGKILL")

    def pids(self) -> dict[int, int]:
        """Rank -> pid of the living."""
        with self._changed:
            return {rank: pid for rank, pid in self._living.pids.items() if rank in self._living.ranks}

    def _join_warm(self) -> None:
        self._warm = Line(self._connect_warm())
        self._selector.register(self._warm.connection, selectors.EVENT_READ, self._hear_warm)

    def _ask_for_ranks(self) -> None:
        for fork in self._living.forks:
            self._ask(op="fork", rank=fork.rank, task=fork.task, env=fork.env, log=fork.log)

    def _ask(self, **request: Any) -> None:
        """If the warm process is gone, the hub's thread sees its end too and reports its ranks as killed."""
        if self._warm is None:
            return
        try:
            self._warm.connection.sendall(json.dumps(request).encode() + b"\n")
        except OSError:
            return

    # reading, on the hub's thread

    def _run(self) -> None:
        """`deliver` may be slow, and messages come in swarms; so they are gathered for a moment."""
        while True:
            messages = self._round(self._beat_s)
            if messages:
                give = time.monotonic() + BATCH_S
                while (left := give - time.monotonic()) > 0:
                    messages += self._round(left)
            self._deliver(messages)

    def _round(self, timeout_s: float) -> list[Message]:
        """Ranks are read before the warm process: a message that was sent before an exit is there when the exit is."""
        messages: list[Message] = []
        late: list[selectors.SelectorKey] = []
        for key, _ in self._selector.select(timeout_s):
            if self._warm is not None and key.fileobj is self._warm.connection:
                late.append(key)
            else:
                messages += key.data(key.fileobj)
        for _ in late:
            messages += self._hear_warm()
        return messages

    def _accept(self, _: Any) -> list[Message]:
        connection, _address = self._listener.accept()
        line = Line(connection)
        self._selector.register(connection, selectors.EVENT_READ, lambda _: self._hear_rank(line))
        return []

    def _hear_rank(self, line: Line) -> list[Message]:
        messages, closed = line.read()
        if closed:
            self._selector.unregister(line.connection)
            line.connection.close()
        with self._changed:
            self._living.greeted |= {message["rank"] for message in messages}
            return [{"epoch": self._living.epoch, **message} for message in messages]

    def _hear_warm(self, _: Any = None) -> list[Message]:
        line = self._warm
        if line is None:
            return []
        told, closed = line.read()
        # What the dead have said lies in their sockets: read it before their end is reported.
        messages = self._last_words() if told or closed else []
        with self._changed:
            messages += [message for event in told for message in self._take(event)]
            if closed:
                self._warm = None
                self._selector.unregister(line.connection)
                line.connection.close()
                messages += [] if self._asked_again() else self._all_lost()
            self._changed.notify_all()
        return messages

    def _last_words(self) -> list[Message]:
        messages: list[Message] = []
        while True:
            ready = [key for key, _ in self._selector.select(0) if self._warm is None or key.fileobj is not self._warm.connection]
            if not ready:
                return messages
            for key in ready:
                messages += key.data(key.fileobj)

    def _take(self, event: Message) -> list[Message]:
        rank, self._living.answered = event["rank"], True
        if event["op"] == "started":
            self._living.pids[rank] = event["pid"]
            return []
        self._living.ranks.discard(rank)
        if event["op"] == "refused":
            return [self._exit(rank, code=1, note=event["message"])]
        return [self._exit(rank, code=event["code"], signal=event["signal"])]

    def _asked_again(self) -> bool:
        """A warm process leaves when it has no ranks (`runtime.warm`): what it was asked for meanwhile, another one does."""
        if not self._living.ranks or self._living.answered or not self._living.more_tries:
            return False
        self._living.more_tries -= 1
        try:
            self._join_warm()
        except ClusterError as error:
            log.warning("no other warm process: %s", error)
            return False
        self._ask_for_ranks()
        return True

    def _all_lost(self) -> list[Message]:
        """The warm process is gone; its ranks died with it."""
        lost = sorted(self._living.ranks)
        self._living.ranks.clear()
        return [self._exit(rank, signal=int(signal.SIGKILL), note="the warm process ended") for rank in lost]

    def _exit(self, rank: int, **how: Any) -> Message:
        greeted = rank in self._living.greeted
        told = {"type": "exit", "rank": rank, "time_s": time.time(), "epoch": self._living.epoch, "greeted": greeted}
        return {**told, **self._facts(rank), **how}
