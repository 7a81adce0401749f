"""What a job printed, a page at a time: for readers that come back later, from another connection, with the offset of the page before."""

from __future__ import annotations

from dataclasses import dataclass

from orchestrator.control.reading.logs import LogLine, LogReader
from orchestrator.job import Job
from orchestrator.storage import ObjectStore

PAGE_BYTES = 1 << 20


@dataclass(frozen=True, kw_only=True)
class LogPage:
    lines: tuple[LogLine, ...]
    offset: str
    """What comes after these lines is read from here."""
    ended: bool
    """The job has ended, and these are its last lines."""


def read_page(store: ObjectStore, job: Job, after: str = "", rank: int | None = None, limit_bytes: int = PAGE_BYTES) -> LogPage:
    """The next lines, about `limit_bytes` of them. `job`: as it was read before, so that nothing it printed until then is missed.

    Raises UserError for an offset that is none of this job's, StorageError.
    """
    reader = LogReader(store, job.id, rank, after)
    lines, size, more = [], 0, False
    for line in reader.lines(ended=job.state.terminal):
        lines.append(line)
        size += len(line.text)
        if size >= limit_bytes:
            more = True
            break
    return LogPage(lines=tuple(lines), offset=reader.offset if lines else after, ended=job.state.terminal and not more)
