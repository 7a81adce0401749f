"""How many requests wait for an object store or for MLflow at once: fewer than there are threads, so that a slow one stops nothing else."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from orchestrator.errors import StorageUnavailable

AT_ONCE = 16
"""Of the 40 threads in which requests are answered."""
PATIENCE_S = 3.0


class Turns:
    """For one event loop."""

    def __init__(self, at_once: int = AT_ONCE, patience_s: float = PATIENCE_S) -> None:
        self._free = asyncio.Semaphore(at_once)
        self._patience_s = patience_s

    @asynccontextmanager
    async def taken(self) -> AsyncIterator[None]:
        """Raises StorageUnavailable where none comes free for some seconds."""
        try:
            async with asyncio.timeout(self._patience_s):
                await self._free.acquire()
        except TimeoutError:
            raise StorageUnavailable("too many requests wait for object stores or MLflow, which are slow: ask again in a while.") from None
        try:
            yield
        finally:
            self._free.release()
