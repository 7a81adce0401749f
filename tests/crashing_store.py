"""A job store whose process dies at a chosen write."""

from __future__ import annotations

from orchestrator.control.records.store import JobStore


class Crash(BaseException):
    """The process is gone."""


class CrashingStore(JobStore):
    """Dies at its write number `at`, which is lost (`kept=False`) or durable (`kept=True`)."""

    at, kept, writes = -1, False, 0
    counts_progress = True
    """Writes of progress alone are among those."""

    def update(self, *arguments, **changes):
        if set(changes) == {"progress"} and not self.counts_progress:
            return super().update(*arguments, **changes)
        return self._count(lambda: super(CrashingStore, self).update(*arguments, **changes))

    def append_from(self, *arguments):
        return self._count(lambda: super(CrashingStore, self).append_from(*arguments))

    def tell_waiting(self, *arguments):
        return self._count(lambda: super(CrashingStore, self).tell_waiting(*arguments))

    def _count(self, write):
        self.writes += 1
        if self.writes != self.at:
            return write()
        if self.kept:
            write()
        raise Crash
