"""The uploader as a child process of the agent: started, fed, kept alive, ended."""

from __future__ import annotations

import contextlib
import json
import logging
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

MAX_STARTS = 5
"""Of the process without a saved checkpoint in between."""
LEAVE_LIMIT_S = 10.0
NICENESS = 10
"""Of the process, from its imports on: on a machine with as many ranks as cores, training goes first."""

log = logging.getLogger("orchestrator.agent")

Message = dict[str, Any]


class UploaderChild:
    """What was given to a process that died is given to the next one: an upload that is done twice writes the same bytes.

    `fail(message)` is called on another thread with an `error` message when it cannot be kept alive.
    """

    def __init__(self, opened: Mapping[str, Any], environ: Mapping[str, str], log_path: Path, fail: Callable[[Message], None]) -> None:
        """`opened`: the first line that the uploader reads."""
        self._opened = {"op": "open", **opened}
        self._environ = dict(environ)
        self._log_path = log_path
        self._fail = fail
        self._lock = threading.Lock()
        self._pending: dict[str, Message] = {}
        self._epoch = 0
        self._starts = 0
        self._closed = False
        self._given_up = ""
        self._process = self._start()

    def begin(self, epoch: int) -> None:
        """Nothing of older epochs is wanted any more."""
        with self._lock:
            self._epoch = epoch
            self._pending = {slab: message for slab, message in self._pending.items() if message["epoch"] >= epoch}
            self._say({"op": "begin", "epoch": epoch})

    def take(self, message: Message) -> None:
        """A rank's `staged`."""
        with self._lock:
            self._pending[message["slab"]] = message
            why = self._given_up
            if not why:
                self._say({**message, "op": "staged"})
        if why:
            self._fail(_error(message, why))

    def heard(self, message: Message) -> None:
        """Any message to the agent: a `saved` or an `error` ends what was pending."""
        if message["type"] in ("saved", "error"):
            with self._lock:
                self._starts = 0 if message["type"] == "saved" else self._starts
                ended = (message["rank"], message["epoch"], message.get("step"))
                self._pending = {slab: held for slab, held in self._pending.items() if _identity(held) != ended}

    def close(self) -> None:
        """What is on its way is given up; the process removes the slabs and leaves."""
        with self._lock:
            self._closed = True
            process = self._process
        if process.stdin is not None:
            with contextlib.suppress(BrokenPipeError):  # it is gone, and what it was not told yet with it
                process.stdin.close()
        try:
            process.wait(LEAVE_LIMIT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def _start(self) -> subprocess.Popen[bytes]:
        self._starts += 1
        command = ["nice", "-n", str(NICENESS), sys.executable, "-m", "orchestrator.supervision.uploader"]
        with self._log_path.open("ab") as output:
            process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=output, stderr=output, env=self._environ, cwd="/", start_new_session=True
            )  # fmt: skip
        threading.Thread(target=self._watch, args=(process,), name="uploader", daemon=True).start()
        self._process = process
        self._say(self._opened)
        return process

    def _watch(self, process: subprocess.Popen[bytes]) -> None:
        code = process.wait()
        with self._lock:
            if self._closed:
                return
            log.warning("the uploader ended with exit code %d; see %s", code, self._log_path)
            pending = list(self._pending.values())
            if self._starts < MAX_STARTS:
                self._start()
                for message in ({"op": "begin", "epoch": self._epoch}, *({**message, "op": "staged"} for message in pending)):
                    self._say(message)
                return
            self._given_up = f"the uploader of its node ended {MAX_STARTS} times in a row, with exit code {code}; see {self._log_path}"
        for message in pending[:1]:
            self._fail(_error(message, self._given_up))

    def _say(self, message: Mapping[str, Any]) -> None:
        """If it is gone, the one after it is told."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(message).encode() + b"\n")
            self._process.stdin.flush()
        except (BrokenPipeError, ValueError):
            log.info("the uploader is gone; the next one is told")


def _error(message: Message, why: str) -> Message:
    told = {"message": why, "traceback": why, "end_reason": "INTERNAL", "fingerprint": "uploader", "echo": False}
    return {"type": "error", **{name: message[name] for name in ("rank", "epoch", "step", "checkpoint")}, **told}


def _identity(message: Message) -> tuple[int, int, int]:
    return message["rank"], message["epoch"], message["step"]
