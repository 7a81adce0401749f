"""The tables of the job store, and the version of their schema. Users, audit log and leases keep theirs in their own modules."""

from __future__ import annotations

import sqlalchemy as sa

from orchestrator.control.records.database import Json, Words
from orchestrator.control.records.schema import SCHEMA_VERSION
from orchestrator.errors import StateError

metadata = sa.MetaData()
jobs = sa.Table(
    "jobs",
    metadata,
    sa.Column("id", sa.String, primary_key=True),
    sa.Column("version", sa.Integer, nullable=False),
    sa.Column("state", sa.String, nullable=False, index=True),
    sa.Column("run", sa.Integer, nullable=False),
    sa.Column("spec", Json, nullable=False),
    sa.Column("submitted_s", sa.Float, nullable=False),
    sa.Column("queued_s", sa.Float, nullable=False),
    sa.Column("started_s", sa.Float),
    sa.Column("ended_s", sa.Float),
    sa.Column("reason", Words, nullable=False),
    sa.Column("stop_requested", sa.String, nullable=False),
    sa.Column("progress", Json, nullable=False),
    sa.Column("result", Json),
    sa.Column("placement", Json, nullable=False),
    sa.Column("standby", Json, nullable=False),
    sa.Column("user", sa.String, nullable=False),
    sa.Column("tenant", sa.String, nullable=False),
    sa.Column("service", Json, nullable=False),
    sa.Column("order", Json),
    sa.Column("position", sa.Integer, nullable=False),
    sa.Column("start_s", sa.Float),
    sa.Column("reserved_s", sa.Float),
    sa.Column("cleared", Json, nullable=False),
)
events = sa.Table(
    "events",
    metadata,
    sa.Column("job_id", sa.String, primary_key=True),
    sa.Column("seq", sa.Integer, primary_key=True),
    sa.Column("kind", sa.String, nullable=False),
    sa.Column("time_s", sa.Float, nullable=False),
    sa.Column("message", Words, nullable=False),
    sa.Column("fields", Json, nullable=False),
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
    sa.Column("message", Words, nullable=False),
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
meta = sa.Table("meta", metadata, sa.Column("key", sa.String, primary_key=True), sa.Column("value", Json, nullable=False))


def check_schema(connection: sa.Connection, where: str) -> None:
    held = connection.execute(sa.select(meta.c.value).where(meta.c.key == "schema_version")).scalar()
    if held is None:
        connection.execute(meta.insert().values(key="schema_version", value=SCHEMA_VERSION))
    elif held != SCHEMA_VERSION:
        raise StateError(
            f"the job store {where} has schema version {held}, this program needs {SCHEMA_VERSION}. Carry its jobs over: "
            "`orchestrator store export FILE`, put the old store away, `orchestrator store import FILE`; or use the program that wrote it, "
            "or another cluster.home."
        )
