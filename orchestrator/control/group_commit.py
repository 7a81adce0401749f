"""Writes of many threads in few transactions: those that come while one is on its way to the disk go together with the next."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass

import sqlalchemy as sa

from orchestrator.control.database import writing


@dataclass(eq=False)
class _Work:
    act: Callable[[sa.Connection], None]
    done: bool = False
    error: Exception | None = None


class GroupCommit:
    """Of one engine, shared by its threads. What `run` returned from is durable."""

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine
        self._pending: list[_Work] = []
        self._turn = threading.Condition()
        self._writing = False

    def run(self, act: Callable[[sa.Connection], None]) -> None:
        """Have `act` write, in a transaction that may hold the writes of others. Raises what it raised; theirs are then written without it.

        `act` may be called twice: what it does beside its writes must not count.
        """
        mine = _Work(act)
        with self._turn:
            self._pending.append(mine)
            while self._writing and not mine.done:
                self._turn.wait()
            leads = not mine.done
            if leads:
                self._writing, batch, self._pending = True, self._pending, []
        if leads:
            self._lead(batch)
        if mine.error is not None:
            raise mine.error

    def _lead(self, batch: list[_Work]) -> None:
        try:
            self._write(batch)
        finally:
            with self._turn:
                for work in batch:
                    work.done = True
                self._writing = False
                self._turn.notify_all()

    def _write(self, batch: list[_Work]) -> None:
        try:
            self._together(batch)
        except Exception as error:  # noqa: BLE001 - each is told its own
            if len(batch) == 1:
                batch[0].error = error
                return
            for work in batch:
                self._write([work])

    def _together(self, batch: list[_Work]) -> None:
        with writing(self._engine) as connection:
            for work in batch:
                work.act(connection)
