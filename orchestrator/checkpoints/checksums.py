"""Checksums of the blocks of a segment. Torch-free."""

from __future__ import annotations

from orchestrator.checkpoints.manifest import BLOCK_BYTES, crc64

Crcs = tuple[tuple[int, ...], ...]
"""Of the blocks of each segment."""


class BlockChecksums:
    """Of `content`, from its beginning on: cheap for what is in the processor's cache, because it has just been written."""

    def __init__(self, content: memoryview) -> None:
        self._content = content
        self._done: list[int] = []
        self._crc = 0
        self._end = 0

    def extend(self, end: int) -> None:
        """Up to the byte `end`: what lies before it changes no more."""
        while self._end < end:
            begin = self._end
            self._end = min(end, begin + BLOCK_BYTES - begin % BLOCK_BYTES)
            self._crc = crc64(self._content[begin : self._end], self._crc)
            if self._end % BLOCK_BYTES == 0 or self._end == len(self._content):
                self._done.append(self._crc)
                self._crc = 0

    def all(self) -> tuple[int, ...]:
        """Of all blocks."""
        self.extend(len(self._content))
        return tuple(self._done)
