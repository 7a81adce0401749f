"""How a request waits for news without holding a thread: one thread watches the store for all of them."""

from __future__ import annotations

import asyncio
import time

from orchestrator.control.records.store import JobStore

_ROUND_S = 0.5
"""A change that came between a look and the wait for the next is seen after so long at most."""


class Watch:
    """Of one store, which nobody else waits on. For one event loop.

    When the server stops nobody waits any more: each is answered with what there is, and asks the next server from there.
    """

    def __init__(self, store: JobStore) -> None:
        self._store = store
        self._round: asyncio.Task[bool] | None = None
        self._stopping = False
        self._waiting: set[asyncio.Future[None]] = set()

    async def change(self, deadline_s: float) -> bool:
        """Until the store was written to, for half a second at most. False if the deadline (by `time.monotonic`) is over."""
        if not self._may_wait(deadline_s):
            return False
        if self._round is None or self._round.done():
            self._round = asyncio.create_task(asyncio.to_thread(self._store.wait_for_change, _ROUND_S))
        await self._wait(deadline_s, self._round)
        return True

    async def pause(self, pause_s: float, deadline_s: float) -> bool:
        """For so long, for what the store does not tell of. False if the deadline is over."""
        if not self._may_wait(deadline_s):
            return False
        await self._wait(min(deadline_s, time.monotonic() + pause_s))
        return True

    def stop(self) -> None:
        """In its event loop."""
        self._stopping = True
        for stopped in self._waiting:
            stopped.set_result(None)

    def _may_wait(self, deadline_s: float) -> bool:
        return time.monotonic() < deadline_s and not self._stopping

    async def _wait(self, deadline_s: float, *news: asyncio.Task[bool]) -> None:
        stopped = asyncio.get_running_loop().create_future()
        self._waiting.add(stopped)
        try:
            left_s = max(0.0, deadline_s - time.monotonic())
            await asyncio.wait({stopped, *news}, timeout=left_s, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._waiting.discard(stopped)
