"""What a job printed, a page at a time: for readers that come back later, from another connection, with the offset of the page before."""

from __future__ import annotations

from dataclasses import dataclass

from orchestrator.control.reading.logs import LogLine, LogReader
from orchestrator.job import Job

PAGE_BYTES = 1 << 20


@dataclass(frozen=True, kw_only=True)
class LogPage:
    lines: tuple[LogLine, ...]
    offset: str
    """What comes after these lines is read from here."""
    more: bool
    """There are more lines already."""
    ended: bool
    """The job has ended, and these are its last lines."""


def read_page(reader: LogReader, job: Job, after: str = "", limit_bytes: int = PAGE_BYTES) -> LogPage:
    """The next lines of a reader at the offset `after`, about `limit_bytes` of them. `job`: as it was read before, so that nothing it
    printed until then is missed. Raises StorageError.
    """
    lines, size, more = [], 0, False
    for line in reader.lines(ended=job.state.terminal):
        lines.append(line)
        size += len(line.text)
        if size >= limit_bytes:
            more = True
            break
    return LogPage(lines=tuple(lines), offset=reader.offset if lines else after, more=more, ended=job.state.terminal and not more)
