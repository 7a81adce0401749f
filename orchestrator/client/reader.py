"""The output of a job's ranks from a server, read as `orchestrator.control.reading.logs.LogReader` reads it from the object store."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

from orchestrator.client.connection import Verbs
from orchestrator.client.lines import Line
from orchestrator.errors import ClusterError, StorageUnavailable, StoreUnavailable


class ServerReader:
    """The lines of all ranks or of one, from the beginning or from where another reader was."""

    def __init__(self, verbs: Verbs, job_id: str, rank: int | None = None, after: str = "", offsets: bool = True) -> None:
        """`offsets`: each line comes with its own. Who does not show them need not ask for them."""
        self._verbs = verbs
        self._job_id = job_id
        self._rank = rank
        self._after = after
        self._offsets = offsets
        self._since_s = 0.0

    def lines(self, ended: bool) -> Iterator[Line]:
        """Those that have come since the last call. `ended`: nothing more will come; the server knows by itself.

        Raises StorageUnavailable where the server is out of reach; whoever calls again goes on where it broke off.
        """
        over = False
        while not over:
            try:
                page = self._verbs.next_logs(self._job_id, self._after, self._rank, 0.0, self._offsets)
            except (ClusterError, StoreUnavailable) as error:
                raise StorageUnavailable(str(error)) from error
            self._after, over = page.offset, page.ended or not page.lines
            yield from (line for line in page.lines if line.time_s >= self._since_s)

    def skip(self, tail: int | None = None, since_s: float | None = None) -> None:
        """Pass over what was shipped before `since_s`; `last` passes over all but the last lines."""
        self._since_s = since_s or 0.0

    def last(self, tail: int, ended: bool) -> list[Line]:
        """The last ones of `lines`."""
        return list(deque(self.lines(ended), maxlen=tail))
