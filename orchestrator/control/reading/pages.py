"""What a job printed, a page at a time: for readers that come back later, from another connection, with the offset of the page before."""

from __future__ import annotations

import dataclasses
from collections import deque
from dataclasses import dataclass

from orchestrator.control.reading.logs import LogLine, LogReader
from orchestrator.job import Job

PAGE_BYTES = 1 << 20
LINE_BYTES = 64
"""That a line takes beside its text."""
LOOK_BACK_BYTES = 4 << 20
MAX_TAIL_LINE = 16_384
"""Characters of a line of a tail."""


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
        size += _size(line)
        if size >= limit_bytes:
            more = True
            break
    return LogPage(lines=tuple(lines), offset=reader.offset if lines else after, more=more, ended=job.state.terminal and not more)


def read_tail(reader: LogReader, job: Job, num_lines: int, limit_bytes: int = PAGE_BYTES) -> LogPage:
    """The last `num_lines`, of `limit_bytes` at most, from the last few megabytes. Of a line that is too long its end, where a progress
    bar shows how far it is. Raises StorageError."""
    reader.skip(tail=num_lines, most_bytes=LOOK_BACK_BYTES)
    lines: deque[LogLine] = deque()
    size = 0
    for line in reader.lines(ended=job.state.terminal):
        lines.append(_cut(line))
        size += _size(lines[-1])
        while len(lines) > num_lines or size > limit_bytes:
            size -= _size(lines.popleft())
    return LogPage(lines=tuple(lines), offset=reader.offset, more=False, ended=job.state.terminal)


def _size(line: LogLine) -> int:
    return len(line.text) + LINE_BYTES


def _cut(line: LogLine) -> LogLine:
    return line if len(line.text) <= MAX_TAIL_LINE else dataclasses.replace(line, text=f"…{line.text[-MAX_TAIL_LINE:]}")
