"""The audit log: who changed or tried to change what, in the same transaction as the change."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from orchestrator.control.records.database import Words, create_tables, writing
from orchestrator.control.records.tables import metadata
from orchestrator.control.records.users import User

TABLE = sa.Table(
    "audit",
    metadata,
    sa.Column("seq", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("time_s", sa.Float, nullable=False),
    sa.Column("user", sa.String, nullable=False),
    sa.Column("tenant", sa.String, nullable=False),
    sa.Column("action", sa.String, nullable=False),
    sa.Column("subject", Words, nullable=False),
    sa.Column("detail", Words, nullable=False),
    sqlite_autoincrement=True,
)


@dataclass(frozen=True, kw_only=True)
class Entry:
    seq: int
    time_s: float
    user: str
    tenant: str
    action: str
    """`submit`, `stop`, `resume`, `forgive`, `user add` ...; `refused ...`: it was not allowed."""
    subject: str
    """The job, machine or user it was done to."""
    detail: str


LONGEST = 300
"""Characters of a subject and of a detail: what is longer is cut, so that whoever is refused cannot fill the store."""
_INSERT = TABLE.insert()


def entry(user: User, action: str, subject: str, detail: str = "") -> tuple[sa.Executable, dict[str, Any]]:
    """The statement that writes it, and its values."""
    values = {"user": user.name, "tenant": user.tenant, "action": action, "subject": _cut(subject), "detail": _cut(detail)}
    return _INSERT, {"time_s": time.time(), **values}


def _cut(text: str) -> str:
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"


class AuditLog:
    """Of one job store."""

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine
        create_tables(engine, TABLE)

    def add(self, user: User, action: str, subject: str, detail: str = "") -> None:
        """For what changes no job."""
        with writing(self._engine) as connection:
            connection.execute(*entry(user, action, subject, detail))

    def read(self, after: int | None = None, limit: int = 1000) -> list[Entry]:
        """In order: the first of those with a number above `after`; None: the newest."""
        seq = TABLE.c.seq
        newest = sa.select(TABLE).order_by(seq.desc())
        query = newest if after is None else sa.select(TABLE).where(seq > after).order_by(seq)
        with self._engine.connect() as connection:
            found = [Entry(**row) for row in connection.execute(query.limit(limit)).mappings()]
        return found[::-1] if after is None else found
