"""The tables of the job store, and how its database is opened."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from orchestrator.errors import StateError

SCHEMA_VERSION = 3
_BUSY_TIMEOUT_MS = 20_000

metadata = sa.MetaData()
jobs = sa.Table(
    "jobs",
    metadata,
    sa.Column("id", sa.String, primary_key=True),
    sa.Column("version", sa.Integer, nullable=False),
    sa.Column("state", sa.String, nullable=False, index=True),
    sa.Column("run", sa.Integer, nullable=False),
    sa.Column("spec", sa.JSON, nullable=False),
    sa.Column("submitted_s", sa.Float, nullable=False),
    sa.Column("queued_s", sa.Float, nullable=False),
    sa.Column("started_s", sa.Float),
    sa.Column("ended_s", sa.Float),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("stop_requested", sa.String, nullable=False),
    sa.Column("progress", sa.JSON, nullable=False),
    sa.Column("result", sa.JSON),
    sa.Column("placement", sa.JSON, nullable=False),
    sa.Column("standby", sa.JSON, nullable=False),
    sa.Column("user", sa.String, nullable=False),
    sa.Column("service", sa.JSON, nullable=False),
    sa.Column("order", sa.JSON),
    sa.Column("position", sa.Integer, nullable=False),
    sa.Column("start_s", sa.Float),
    sa.Column("reserved_s", sa.Float),
)
events = sa.Table(
    "events",
    metadata,
    sa.Column("job_id", sa.String, primary_key=True),
    sa.Column("seq", sa.Integer, primary_key=True),
    sa.Column("kind", sa.String, nullable=False),
    sa.Column("time_s", sa.Float, nullable=False),
    sa.Column("message", sa.Text, nullable=False),
    sa.Column("fields", sa.JSON, nullable=False),
    sa.Column("source", sa.String, nullable=False),
    sa.Column("source_seq", sa.Integer, nullable=False),
)
incidents = sa.Table(
    "incidents",
    metadata,
    sa.Column("job_id", sa.String, primary_key=True),
    sa.Column("seq", sa.Integer, primary_key=True),
    sa.Column("kind", sa.String, nullable=False),
    sa.Column("node", sa.String, nullable=False),
    sa.Column("gpu", sa.String, nullable=False),
    sa.Column("time_s", sa.Float, nullable=False, index=True),
    sa.Column("message", sa.Text, nullable=False),
)
"""Those of the events that speak against a machine, of all jobs; a machine that is forgiven loses its rows."""
stays = sa.Table(
    "stays",
    metadata,
    sa.Column("seq", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("job_id", sa.String, nullable=False),
    sa.Column("tenant", sa.String, nullable=False),
    sa.Column("width", sa.Integer, nullable=False),
    sa.Column("asked_width", sa.Integer, nullable=False),
    sa.Column("started_s", sa.Float, nullable=False),
    sa.Column("ended_s", sa.Float, nullable=False, index=True),
    sa.Column("ran_s", sa.Float, nullable=False),
    sa.Column("succeeded", sa.Boolean, nullable=False),
)
"""One row for each time that a job held a place: what tenants are charged for, and what run times are estimated from."""
meta = sa.Table("meta", metadata, sa.Column("key", sa.String, primary_key=True), sa.Column("value", sa.JSON, nullable=False))


def open_database(where: str | Path) -> sa.Engine:
    url = str(where)
    if "://" not in url:
        Path(url).parent.mkdir(parents=True, exist_ok=True)
        url = f"sqlite:///{url}"
    engine = sa.create_engine(url, json_serializer=lambda value: json.dumps(value, sort_keys=True))
    if engine.dialect.name == "sqlite":
        sa.event.listen(engine, "connect", _set_up_sqlite)
        sa.event.listen(engine, "begin", _begin_sqlite)
    return engine


def _set_up_sqlite(connection: Any, _record: Any) -> None:
    connection.isolation_level = None  # the driver must not open transactions of its own: `_begin_sqlite` does
    connection.execute(f"PRAGMA busy_timeout={_BUSY_TIMEOUT_MS}")
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=FULL")


def _begin_sqlite(connection: sa.Connection) -> None:
    writes = connection.get_execution_options().get("writes", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


def check_schema(connection: sa.Connection, where: str) -> None:
    held = connection.execute(sa.select(meta.c.value).where(meta.c.key == "schema_version")).scalar()
    if held is None:
        connection.execute(meta.insert().values(key="schema_version", value=SCHEMA_VERSION))
    elif held != SCHEMA_VERSION:
        raise StateError(
            f"the job store {where} has schema version {held}, this program needs {SCHEMA_VERSION}. "
            "Use the program that wrote it, or another cluster.home."
        )
