"""The warm process: a program that has imported torch already and forks ranks on request.

    python -m orchestrator.runtime.warm --socket PATH --watch-pid PID [--entry module:function] [--detach]

One per node and environment; it holds `<socket>.lock` while it lives. It has one thread (a fork copies only the calling one, so
locks of others would stay locked for ever) and makes no CUDA call. Each connection is one agent; both sides send JSON lines:

    {"op": "fork", "rank", "task": {...}, "env": {...}, "log": path}  ->  {"op": "started", "rank", "pid"}
                                                                          {"op": "refused", "rank", "message"}
    {"op": "kill", "rank": number or null for all, "signal"}
    a child ended                                                     ->  {"op": "exit", "rank", "pid", "code", "signal"}

A connection that closes takes its ranks with it, and so does the end of this process: the watched pid is gone, or SIGTERM, which it passes
on to the ranks that it has, and leaves when they have. What an agent that is gone has left in the node's memory is removed (`node_memory`).
It leaves by itself

    once no agent is connected, if agents have begun to ask for a process of other code or packages (`warm_place`)
    once no agent has been connected for `--idle-limit-s`, if that is given: it has the variables of a job
    once it has no ranks, if it has grown by `--max-growth-mb` since it was ready

First it takes its socket away: who comes then starts another. Who got no answer yet asks the next one (`RankHub`).
"""

from __future__ import annotations

import argparse
import gc
import importlib
import json
import os
import selectors
import signal
import socket
import struct
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from orchestrator.runtime import child
from orchestrator.runtime.node_memory import NodeMemory, Owner
from orchestrator.runtime.stacks import show_stacks_in, stack_file
from orchestrator.runtime.task import RankTask
from orchestrator.runtime.warm_place import hold_lock, is_newest, listen

DEFAULT_ENTRY = "orchestrator.runtime.rank:main"
PRELOAD = "orchestrator.runtime.preload:preload"
POLL_S = 1.0
SEND_LIMIT_S = 5.0
GONE_LIMIT_S = 5.0
"""How long the killed ranks of an agent that has closed its connection are waited for, and in the end the processes of such agents."""
MAX_GROWTH_MB = 256

Entry = Callable[[RankTask], int]
Request = dict[str, Any]


@dataclass
class Rank:
    number: int
    pid: int
    clock: str


@dataclass
class Agent:
    """One connection and the ranks that were forked for it."""

    connection: socket.socket
    owner: Owner
    unread: bytes = b""
    ranks: dict[int, Rank] = field(default_factory=dict)


class Warm:
    def __init__(
        self, listener: socket.socket, entry: Entry, watch_pid: int, lock: int, max_growth_bytes: int, idle_limit_s: float = 0.0
    ) -> None:  # fmt: skip
        self._idle_limit_s = idle_limit_s
        self._connected_s = time.monotonic()
        self._listener = listener
        self._path = Path(listener.getsockname())
        self._max_bytes = child.own_bytes() + max_growth_bytes
        self._entry = entry
        self._watch = (watch_pid, child.start_time(watch_pid))
        self._lock = lock
        self._agents: list[Agent] = []
        self._dying: list[Agent] = []
        """Their connections have closed, and the kernel does not let go of some of their ranks, which were killed."""
        self._memory = NodeMemory()
        self._leaving = self._passed_on = False
        self._has_forked = self._is_idle = False
        self._wake, self._woken = socket.socketpair()
        self._selector = selectors.DefaultSelector()

    def serve(self) -> None:
        """Until it may leave, or the watched process is gone; then all ranks are dead and reaped."""
        self._hear_signals()
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._selector.register(self._wake, selectors.EVENT_READ)
        while not self._may_leave() and child.start_time(self._watch[0]) == self._watch[1] is not None:
            ready = [key.fileobj for key, _ in self._selector.select(POLL_S)]
            self._is_idle = not ready
            self._round(ready)
        self._path.unlink(missing_ok=True)
        self._drop(*self._agents)
        self._memory.clear(GONE_LIMIT_S)

    def _hear_signals(self) -> None:
        for end in (self._wake, self._woken):
            end.setblocking(False)
        signal.set_wakeup_fd(self._woken.fileno(), warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.signal(signal.SIGTERM, self._leave)
        signal.signal(signal.SIGINT, signal.SIG_IGN)

    def _leave(self, *_: Any) -> None:
        self._leaving = True

    def _may_leave(self) -> bool:
        """Not while somebody waits for an answer."""
        if any(agent.ranks for agent in self._agents):
            return False
        if self._leaving or self._dying or not self._is_idle:
            return self._leaving
        if self._agents:
            self._connected_s = time.monotonic()
        if self._idle_limit_s and time.monotonic() - self._connected_s > self._idle_limit_s:
            return True
        return (not self._agents and not is_newest(self._path)) or (self._has_forked and child.own_bytes() > self._max_bytes)

    def _round(self, ready: list[Any]) -> None:
        """Connections that closed come first: their ranks hold memory and ports that a request may need."""
        requests = [(agent, lines) for agent in list(self._agents) if agent.connection in ready and (lines := self._read(agent))]
        if self._wake in ready:
            self._wake.recv(4096)
        self._reap()
        self._memory.clear()
        if self._leaving and not self._passed_on:
            self._pass_on_sigterm()
        if self._listener in ready:
            self._accept()
        for agent, lines in requests:
            for line in lines:
                if agent in self._agents:
                    self._obey(agent, json.loads(line))

    # agents

    def _accept(self) -> None:
        connection, _ = self._listener.accept()
        connection.settimeout(SEND_LIMIT_S)
        pid = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[0]
        self._agents.append(Agent(connection, self._memory.owner(pid)))
        self._selector.register(connection, selectors.EVENT_READ)

    def _read(self, agent: Agent) -> list[bytes]:
        try:
            data = agent.connection.recv(1 << 20)
        except OSError:
            data = b""
        if not data:
            self._drop(agent)
            return []
        *lines, agent.unread = (agent.unread + data).split(b"\n")
        return lines

    def _drop(self, *agents: Agent) -> None:
        """They are gone, or are told so by the end of their connections: not before their ranks are, whose files the next ones get.

        But a rank that is stuck in the kernel is waited for only so long: everybody else on this node waits too.
        """
        ranks = [rank for agent in agents for rank in agent.ranks.values()]
        for agent in agents:
            self._agents.remove(agent)
            self._selector.unregister(agent.connection)
        for rank in ranks:
            child.kill_tree(rank.pid, signal.SIGKILL)
            _remove_clock(rank)  # now: later one of its name is the next rank's
        for agent in agents:
            self._memory.went(agent.owner)
        child.await_ends([rank.pid for rank in ranks], GONE_LIMIT_S)
        self._dying += agents
        self._bury_dying()

    def _bury_dying(self) -> None:
        for agent in list(self._dying):
            for rank in [rank for rank in agent.ranks.values() if child.has_ended(rank.pid)]:
                child.bury(rank.pid)
                del agent.ranks[rank.number]
            if not agent.ranks:
                agent.connection.close()
                self._dying.remove(agent)

    def _tell(self, agent: Agent, **message: Any) -> None:
        try:
            agent.connection.sendall(json.dumps(message).encode() + b"\n")
        except OSError:
            self._drop(agent)

    # ranks

    def _obey(self, agent: Agent, request: Request) -> None:
        if request["op"] == "fork":
            self._fork(agent, request)
        elif request["op"] == "kill":
            chosen = [rank for rank in agent.ranks.values() if request["rank"] in (None, rank.number)]
            for rank in chosen:
                child.kill_tree(rank.pid, signal.Signals(request["signal"]))

    def _fork(self, agent: Agent, request: Request) -> None:
        number = request["rank"]
        threads = len(list(Path("/proc/self/task").iterdir()))
        if threads != 1:
            message = f"the warm process has {threads} threads, so it must not fork; something that it imports starts threads"
            self._tell(agent, op="refused", rank=number, message=message)
            return
        parent = os.getpid()
        sys.stdout.flush()
        sys.stderr.flush()
        pid = os.fork()
        if pid == 0:
            self._be_rank(request, parent)
        self._has_forked = True
        self._memory.used(agent.owner, request["task"])
        agent.ranks[number] = Rank(number, pid, request["task"].get("clock", ""))
        self._tell(agent, op="started", rank=number, pid=pid)

    def _be_rank(self, request: Request, parent: int) -> NoReturn:
        code = 1
        try:
            child.die_with_parent(parent)
            os.setsid()
            self._forget_parent()
            child.redirect_output(Path(request["log"]))
            show_stacks_in(stack_file(Path(request["log"])))
            os.environ.update(request["env"])
            task = RankTask.from_dict(request["task"])
            child.set_threads(task)
            code = self._entry(task)
        except SystemExit as leaving:
            code = leaving.code if isinstance(leaving.code, int) else int(leaving.code is not None)
        except BaseException:  # noqa: BLE001 - the last frame of a process: the traceback goes to the rank's log, the code to the agent
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code & 0xFF)

    def _forget_parent(self) -> None:
        """Sockets, lock and signal handlers are the parent's. An open copy of a connection would hide its end from the agent."""
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGCHLD, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)
        self._selector.close()
        for agent in [*self._agents, *self._dying]:
            agent.connection.close()
        for end in (self._listener, self._wake, self._woken):
            end.close()
        os.close(self._lock)

    def _pass_on_sigterm(self) -> None:
        """The machine is taken back, and the ranks have time to save. What is not reaped still has its pid."""
        self._passed_on = True
        for rank in [rank for agent in self._agents for rank in agent.ranks.values()]:
            os.kill(rank.pid, signal.SIGTERM)

    def _reap(self) -> None:
        """Report the ranks that have ended. What they left running in their sessions is killed while the pid is still theirs."""
        for agent in list(self._agents):
            for rank in [rank for rank in agent.ranks.values() if child.has_ended(rank.pid)]:
                code, number = child.bury(rank.pid)
                _remove_clock(rank)
                del agent.ranks[rank.number]
                self._tell(agent, op="exit", rank=rank.number, pid=rank.pid, code=code, signal=number)
                if agent not in self._agents:
                    break
        self._bury_dying()


def _remove_clock(rank: Rank) -> None:
    if rank.clock:
        Path(rank.clock).unlink(missing_ok=True)


def load(name: str) -> Callable[..., Any]:
    module, function = name.split(":")
    loaded: Callable[..., Any] = getattr(importlib.import_module(module), function)
    return loaded


def _entry(name: str) -> Entry:
    """Import all that a rank will need. A double brings its own and has nothing to preload."""
    if name == DEFAULT_ENTRY:
        load(PRELOAD)()
    return load(name)


def main(arguments: Sequence[str] | None = None) -> int:
    """Does not return once it holds the lock."""
    about = "Fork ranks from a process that has imported torch."
    parser = argparse.ArgumentParser(prog="python -m orchestrator.runtime.warm", description=about)
    parser.add_argument("--socket", type=Path, required=True)
    parser.add_argument("--watch-pid", type=int, required=True, help="leave when this process (the node's raylet) is gone")
    parser.add_argument("--entry", default=DEFAULT_ENTRY, help="what a rank runs")
    parser.add_argument("--max-growth-mb", type=int, default=MAX_GROWTH_MB, help="leave when it has grown by so much and has no ranks")
    parser.add_argument("--idle-limit-s", type=float, default=0.0, help="leave when no agent has been connected for so long; 0: never")
    parser.add_argument("--detach", action="store_true", help="go on in a process that has no parent")
    options = parser.parse_args(arguments)
    if options.detach:
        child.detach()
    lock = hold_lock(options.socket.with_name(options.socket.name + ".lock"))
    if lock is None:
        return 0
    for name in child.ONE_THREAD:
        os.environ[name] = "1"
    with listen(options.socket) as listener:  # open before the imports: agents that connect meanwhile wait in its queue
        entry = _entry(options.entry)
        gc.freeze()
        Warm(listener, entry, options.watch_pid, lock, options.max_growth_mb * 1024 * 1024, options.idle_limit_s).serve()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # taking torch apart would take a second, and there is nothing left to be done


if __name__ == "__main__":
    sys.exit(main())
