"""Lists of jobs: what was read once is kept until its row changes, so that a long list costs little more than its transfer."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from orchestrator.control import tables
from orchestrator.control.api.answers import encoded
from orchestrator.control.summary import JobSummary, summaries_where
from orchestrator.job import JobState

_WATCHED = ("version", "reason", "position")
"""Columns; where one of them is another one, the job is read again."""

_MANY = 500


@dataclass(frozen=True)
class Kept:
    summary: JobSummary
    watched: tuple[Any, ...]
    json: bytes
    """Empty of one that runs: its time left is another one at every moment."""

    def shown(self, now: float) -> bytes:
        return self.json or encoded(self.summary.to_dict(now))


class Listing:
    """Of all jobs of one store."""

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine
        self._kept: dict[str, Kept] = {}
        self._lock = threading.Lock()
        columns = tables.jobs.c
        self._look = sa.select(columns.id, *(columns[name] for name in _WATCHED)).order_by(columns.submitted_s, columns.id)

    def page(
        self, *, state: JobState | None = None, tenant: str | None = None, user: str | None = None, after: str = "",
        limit: int | None = None,
    ) -> list[Kept]:  # fmt: skip
        """Those that fit, in the order of submission: after the job `after`, `limit` of them."""
        found = self._fresh()
        if after:
            found = found[1 + next((index for index, kept in enumerate(found) if kept.summary.id == after), -1) :]
        wanted = [(name, value) for name, value in (("state", state), ("tenant", tenant), ("user", user)) if value is not None]
        if wanted:
            found = [kept for kept in found if all(getattr(kept.summary, name) == value for name, value in wanted)]
        return found[:limit]

    def _fresh(self) -> list[Kept]:
        with self._lock, self._engine.connect() as connection:
            rows = connection.execute(self._look).all()
            changed = [row[0] for row in rows if (kept := self._kept.get(row[0])) is None or kept.watched != tuple(row[1:])]
            watched, now = {row[0]: tuple(row[1:]) for row in rows}, time.time()
            for summary in _read(connection, changed):
                if summary.id not in watched:
                    continue  # submitted after the look
                json = b"" if summary.state.active else encoded(summary.to_dict(now))
                self._kept[summary.id] = Kept(summary, watched[summary.id], json)
            self._kept = {job_id: self._kept[job_id] for job_id in watched if job_id in self._kept}
            return list(self._kept.values())


def _read(connection: sa.Connection, ids: Sequence[str]) -> list[JobSummary]:
    """Of many, all: it takes no longer than to name them."""
    if not ids:
        return []
    return summaries_where(connection, tables.jobs, tables.jobs.c.id.in_(ids) if len(ids) <= _MANY else sa.true())
