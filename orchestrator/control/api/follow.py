"""How a request waits for news without holding a thread: one thread watches the store for all of them."""

from __future__ import annotations

import asyncio
import time

from orchestrator.control.records.store import JobStore

_ROUND_S = 0.5
"""A change that came between a look and the wait for the next is seen after so long at most."""


class Watch:
    """Of one store, which nobody else waits on. For one event loop."""

    def __init__(self, store: JobStore) -> None:
        self._store = store
        self._round: asyncio.Task[bool] | None = None

    async def change(self, deadline_s: float) -> bool:
        """Until the store was written to, for half a second at most. False if the deadline (by `time.monotonic`) is over."""
        left_s = deadline_s - time.monotonic()
        if left_s <= 0:
            return False
        if self._round is None or self._round.done():
            self._round = asyncio.create_task(asyncio.to_thread(self._store.wait_for_change, _ROUND_S))
        await asyncio.wait({self._round}, timeout=left_s)
        return True
