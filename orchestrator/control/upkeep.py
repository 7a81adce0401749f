"""What keeps the tables and the logs of a control plane from growing for ever. A step of it takes some milliseconds."""

from __future__ import annotations

from orchestrator.control.log_files import shorten_logs
from orchestrator.control.records.outdated import delete_outdated
from orchestrator.control.records.store import JobStore
from orchestrator.paths import Home

LOGS_INTERVAL_S = 60.0
ROWS_INTERVAL_S = 3600.0


class Upkeep:
    def __init__(self, store: JobStore, home: Home) -> None:
        self._store, self._home = store, home
        self._logs_s = self._rows_s = float("-inf")
        """When it is time again."""

    def step(self, now: float) -> None:
        if now >= self._logs_s:
            self._logs_s = now + LOGS_INTERVAL_S
            shorten_logs(self._home)
        if now >= self._rows_s:
            more = delete_outdated(self._store.engine, now)
            self._rows_s = now if more else now + ROWS_INTERVAL_S
