"""The job store: one row per job, guarded by a version, the log of its events, and what of them speaks against machines.

SQLite in write-ahead mode with `synchronous=FULL`: what `put` or `update` returned from survives a power cut. Many processes may
read and write at once; each write is one short transaction. Any other database that SQLAlchemy knows works with the same code.
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from orchestrator.control.reputation import Incident
from orchestrator.control.summary import JobSummary, read_summaries
from orchestrator.errors import JobNotFound, StaleWrite, StateError, nearest
from orchestrator.events import Event, EventKind, IncidentKind
from orchestrator.job import Job, JobState, check_transition, job_from_dict, job_to_dict

SCHEMA_VERSION = 2
_BUSY_TIMEOUT_MS = 20_000
LOOK_S = 0.005

_metadata = sa.MetaData()
_jobs = sa.Table(
    "jobs",
    _metadata,
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
)
_events = sa.Table(
    "events",
    _metadata,
    sa.Column("job_id", sa.String, primary_key=True),
    sa.Column("seq", sa.Integer, primary_key=True),
    sa.Column("kind", sa.String, nullable=False),
    sa.Column("time_s", sa.Float, nullable=False),
    sa.Column("message", sa.Text, nullable=False),
    sa.Column("fields", sa.JSON, nullable=False),
    sa.Column("source", sa.String, nullable=False),
    sa.Column("source_seq", sa.Integer, nullable=False),
)
_incidents = sa.Table(
    "incidents",
    _metadata,
    sa.Column("job_id", sa.String, primary_key=True),
    sa.Column("seq", sa.Integer, primary_key=True),
    sa.Column("kind", sa.String, nullable=False),
    sa.Column("node", sa.String, nullable=False),
    sa.Column("gpu", sa.String, nullable=False),
    sa.Column("time_s", sa.Float, nullable=False, index=True),
    sa.Column("message", sa.Text, nullable=False),
)
"""Those of the events that speak against a machine, of all jobs; a machine that is forgiven loses its rows."""
_meta = sa.Table("meta", _metadata, sa.Column("key", sa.String, primary_key=True), sa.Column("value", sa.JSON, nullable=False))


class JobStore:
    """All jobs of one control plane."""

    def __init__(self, where: str | Path) -> None:
        """`where`: a file of SQLite (made if missing) or an SQLAlchemy URL. Raises StateError for another schema version."""
        self._engine = _open(where)
        self._watch: Any = None
        self._watched = 0
        with self._write() as connection:
            _metadata.create_all(connection)
            _check_schema(connection, str(where))

    def close(self) -> None:
        if self._watch is not None:
            self._watch.close()
        self._engine.dispose()

    def wait_for_change(self, limit_s: float) -> bool:
        """Until something was written since the last call, or for `limit_s`; always that long where the database is not SQLite.

        Returns whether it was.
        """
        deadline = time.monotonic() + limit_s
        while (version := self._version()) == self._watched and (left_s := deadline - time.monotonic()) > 0:
            time.sleep(min(LOOK_S, left_s))
        changed, self._watched = version != self._watched, version
        return changed

    def _version(self) -> int:
        """Grows with each commit of any other connection; read from shared memory, so it costs some microseconds."""
        if self._engine.dialect.name != "sqlite":
            return 0
        if self._watch is None:
            self._watch = self._engine.raw_connection()
        return int(self._watch.cursor().execute("PRAGMA data_version").fetchone()[0])

    # jobs

    def put(self, job: Job, events: Sequence[Event] = ()) -> None:
        """Add a new job. Raises StateError if the id is taken."""
        with self._write() as connection:
            try:
                connection.execute(_jobs.insert().values(**job_to_dict(job)))
            except sa.exc.IntegrityError as error:
                raise StateError(f"there is already a job named {job.id}") from error
            _append(connection, job.id, events)

    def get(self, job_id: str) -> Job:
        """Raises JobNotFound naming the nearest id."""
        with self._engine.connect() as connection:
            row = connection.execute(sa.select(_jobs).where(_jobs.c.id == job_id)).mappings().first()
        if row is None:
            raise self._not_found(job_id)
        return _job(row)

    def find(self, prefix: str) -> Job:
        """The job whose id is `prefix`, or the only one that begins with it. Raises JobNotFound, listing the candidates."""
        ids = self._ids()
        if prefix in ids:
            return self.get(prefix)
        matches = [job_id for job_id in ids if prefix and job_id.startswith(prefix)]
        if not matches:
            raise self._not_found(prefix)
        if len(matches) > 1:
            raise JobNotFound(f"'{prefix}' fits {len(matches)} jobs: {', '.join(matches[-10:])}. Give more of the name.")
        return self.get(matches[0])

    def all(self, states: Iterable[JobState] | None = None) -> list[Job]:
        """Jobs in the order of their submission, of all states or of those given."""
        query = sa.select(_jobs).order_by(_jobs.c.submitted_s, _jobs.c.id)
        if states is not None:
            query = query.where(_jobs.c.state.in_([state.value for state in states]))
        with self._engine.connect() as connection:
            return [_job(row) for row in connection.execute(query).mappings()]

    def summaries(self, states: Collection[JobState] | None = None, limit: int = 0) -> list[JobSummary]:
        """What a list shows, in the order of submission; of more than `limit` (0: none) those that have not ended, then the newest."""
        with self._engine.connect() as connection:
            return read_summaries(connection, _jobs, states, limit)

    def count(self, states: Collection[JobState] | None = None) -> int:
        query = sa.select(sa.func.count()).select_from(_jobs)
        if states is not None:
            query = query.where(_jobs.c.state.in_([state.value for state in states]))
        with self._engine.connect() as connection:
            return int(connection.execute(query).scalar() or 0)

    def update(self, job: Job, events: Sequence[Event] = (), **changes: Any) -> Job:
        """Write `changes` to the row that `job` was read from, and append `events`, in one transaction.

        Raises StaleWrite if the row changed since, IllegalTransition if the new state does not follow from the old one.
        """
        new = dataclasses.replace(job, **changes, version=job.version + 1)
        if new.state is not job.state:
            check_transition(job.state, new.state)
        same_row = sa.and_(_jobs.c.id == job.id, _jobs.c.version == job.version)
        with self._write() as connection:
            written = connection.execute(_jobs.update().where(same_row).values(**job_to_dict(new)))
            if written.rowcount != 1:
                raise StaleWrite(f"{job.id} changed since it was read (version {job.version})")
            _append(connection, job.id, events)
        return new

    # events

    def append_events(self, job_id: str, events: Sequence[Event]) -> None:
        with self._write() as connection:
            _append(connection, job_id, events)

    def append_from(self, job_id: str, source: str, numbered: Sequence[tuple[int, Event]]) -> int:
        """Append what a source tells, each of its sequence numbers once and in order. Returns the highest number now held."""
        with self._write() as connection:
            held = _cursor(connection, job_id, source)
            fresh = sorted((seq, event) for seq, event in dict(numbered).items() if seq > held)
            for seq, event in fresh:
                _append(connection, job_id, [event], source, seq)
        return fresh[-1][0] if fresh else held

    def cursor(self, job_id: str, source: str) -> int:
        """The highest sequence number held of a source's events; 0 if none."""
        with self._engine.connect() as connection:
            return _cursor(connection, job_id, source)

    def events(self, job_id: str, after: int = 0) -> list[tuple[int, Event]]:
        """(sequence number, event) in order, of those with a number above `after`."""
        query = sa.select(_events).where(_events.c.job_id == job_id, _events.c.seq > after).order_by(_events.c.seq)
        with self._engine.connect() as connection:
            return [(row["seq"], _event(row)) for row in connection.execute(query).mappings()]

    # machines

    def incidents(self, since_s: float) -> list[Incident]:
        """What has spoken against machines since then (seconds since 1970), in order of time."""
        columns = [column for column in _incidents.c if column.name != "seq"]
        query = sa.select(*columns).where(_incidents.c.time_s >= since_s).order_by(_incidents.c.time_s, _incidents.c.job_id)
        with self._engine.connect() as connection:
            return [Incident(**{**row, "kind": IncidentKind[row["kind"]]}) for row in connection.execute(query).mappings()]

    def forgive(self, node: str) -> int:
        """Nothing that has happened speaks against the machine any more. Returns how many incidents there were."""
        with self._write() as connection:
            return int(connection.execute(_incidents.delete().where(_incidents.c.node == node)).rowcount)

    # facts of the control plane

    def set_meta(self, key: str, value: Any) -> None:
        with self._write() as connection:
            connection.execute(_meta.delete().where(_meta.c.key == key))
            connection.execute(_meta.insert().values(key=key, value=value))

    def meta(self, key: str) -> Any:
        """The JSON value under `key`, None if there is none."""
        with self._engine.connect() as connection:
            return connection.execute(sa.select(_meta.c.value).where(_meta.c.key == key)).scalar()

    def _write(self) -> Any:
        """A transaction that takes the write lock at once, so that it never has to be upgraded (and refused) midway."""
        return self._engine.execution_options(writes=True).begin()

    def _ids(self) -> list[str]:
        with self._engine.connect() as connection:
            return list(connection.execute(sa.select(_jobs.c.id).order_by(_jobs.c.submitted_s)).scalars())

    def _not_found(self, wanted: str) -> JobNotFound:
        ids = self._ids()
        known = f"Known: {', '.join(ids[-10:])}." if ids else "There is none yet."
        return JobNotFound(f"no job is named '{wanted}'. {known}{nearest(wanted, ids)}")


def _open(where: str | Path) -> sa.Engine:
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


def _check_schema(connection: sa.Connection, where: str) -> None:
    held = connection.execute(sa.select(_meta.c.value).where(_meta.c.key == "schema_version")).scalar()
    if held is None:
        connection.execute(_meta.insert().values(key="schema_version", value=SCHEMA_VERSION))
    elif held != SCHEMA_VERSION:
        raise StateError(
            f"the job store {where} has schema version {held}, this program needs {SCHEMA_VERSION}. "
            "Use the program that wrote it, or another cluster.home."
        )


def _append(connection: sa.Connection, job_id: str, events: Sequence[Event], source: str = "", source_seq: int = 0) -> None:
    if not events:
        return
    last = connection.execute(sa.select(sa.func.max(_events.c.seq)).where(_events.c.job_id == job_id)).scalar() or 0
    rows = [
        {
            "job_id": job_id, "seq": last + 1 + index, "kind": event.kind.name, "time_s": event.time_s, "message": event.message,
            "fields": dict(event.fields), "source": source, "source_seq": source_seq,
        }
        for index, event in enumerate(events)
    ]  # fmt: skip
    connection.execute(_events.insert(), rows)
    against = [
        {"job_id": job_id, "seq": last + 1 + index, "time_s": event.time_s, **_against(event)}
        for index, event in enumerate(events)
        if event.fields.get("incident") in IncidentKind.__members__
    ]
    if against:
        connection.execute(_incidents.insert(), against)


def _against(event: Event) -> dict[str, str]:
    """What an event says against a machine."""
    told = {"kind": event.fields["incident"], "node": event.fields["node"], "gpu": event.fields.get("gpu", "")}
    return {**told, "message": event.message.partition("\n")[0]}


def _cursor(connection: sa.Connection, job_id: str, source: str) -> int:
    mine = sa.and_(_events.c.job_id == job_id, _events.c.source == source)
    return connection.execute(sa.select(sa.func.max(_events.c.source_seq)).where(mine)).scalar() or 0


def _job(row: sa.RowMapping) -> Job:
    return job_from_dict({str(column): value for column, value in row.items()})


def _event(row: Any) -> Event:
    kind = EventKind[row["kind"]]
    return Event(kind=kind, job_id=row["job_id"], time_s=row["time_s"], message=row["message"], fields=row["fields"])
