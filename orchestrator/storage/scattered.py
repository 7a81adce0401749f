"""Memory in several places that is filled as if it were one."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

_MAX_PLACES = 512
"""Of one system call; Linux takes 1024."""


class Scattered:
    """`buffers`, contiguous and of any type, one after the other; it knows how far they are filled."""

    def __init__(self, buffers: Iterable[memoryview]) -> None:
        self._left = deque(view for view in (buffer.cast("B") for buffer in buffers) if len(view))
        self.filled_bytes = 0
        self.missing_bytes = sum(map(len, self._left))

    def next(self, most_bytes: int) -> list[memoryview]:
        """What is to be filled next; less than `most_bytes` at the end, and where it would be too many places."""
        found: list[memoryview] = []
        room = min(most_bytes, self.missing_bytes)
        for view in self._left:
            if not room or len(found) == _MAX_PLACES:
                break
            found.append(view[:room])
            room -= len(found[-1])
        return found

    def advance(self, num_bytes: int) -> None:
        """So many have come, into what `next` gave."""
        self.filled_bytes += num_bytes
        self.missing_bytes -= num_bytes
        while num_bytes:
            view = self._left.popleft()
            if num_bytes < len(view):
                self._left.appendleft(view[num_bytes:])
            num_bytes -= min(num_bytes, len(view))

    def write(self, data: bytes | memoryview) -> None:
        """The next bytes. ValueError if there are more of them than are missing."""
        source = memoryview(data)
        if len(source) > self.missing_bytes:
            raise ValueError(f"{len(source)} bytes for {self.missing_bytes}")
        while len(source):
            view = self._left[0]
            count = min(len(view), len(source))
            view[:count] = source[:count]
            self.advance(count)
            source = source[count:]

    def parts(self, part_bytes: int) -> list[Scattered]:
        """The same memory in parts of `part_bytes`, the last one of less. Only while nothing is filled."""
        found: list[list[memoryview]] = []
        room = 0
        for view in self._left:
            start = 0
            while start < len(view):
                if not room:
                    found.append([])
                    room = part_bytes
                found[-1].append(view[start : start + room])
                start += len(found[-1][-1])
                room -= len(found[-1][-1])
        return [Scattered(views) for views in found]
