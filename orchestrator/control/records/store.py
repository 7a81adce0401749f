"""The job store: one row per job, guarded by a version, the log of its events, what of them speaks against machines, and the stays.

What `put` or `update` returned from survives a power cut. Many processes may read and write at once; each write is one short transaction.
The databases that it may lie in: `orchestrator.control.records.database`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from orchestrator.control.planning.accounts import MAX_STAYS, Stay
from orchestrator.control.planning.reputation import Incident
from orchestrator.control.reading.summary import JobSummary, read_summaries
from orchestrator.control.records import database, tables
from orchestrator.control.records.group_commit import GroupCommit
from orchestrator.errors import JobNotFound, StaleWrite, StateError, nearest
from orchestrator.events import Event, EventKind, IncidentKind
from orchestrator.job import Job, JobState, check_transition, fields_to_dict, job_from_dict, job_to_dict

_INSERT_JOB, _INSERT_EVENT = tables.jobs.insert(), tables.events.insert()
_JOB = sa.select(tables.jobs).where(tables.jobs.c.id == sa.bindparam("id"))
_META = sa.select(tables.meta.c.value).where(tables.meta.c.key == sa.bindparam("key"))
_LAST_EVENT = sa.select(sa.func.max(tables.events.c.seq)).where(tables.events.c.job_id == sa.bindparam("job_id"))
"""To build a statement takes as long as to run it."""
_MANY = 500
"""Ids in one question."""
_LIVE_VERSIONS = (
    sa.select(tables.jobs.c.id, tables.jobs.c.version)
    .where(tables.jobs.c.state.in_([state.value for state in JobState if not state.terminal]))
    .order_by(tables.jobs.c.submitted_s, tables.jobs.c.id)
)
_WAITING = ("reason", "position", "start_s", "reserved_s", "cleared", "progress")
"""What only tells of a job that waits."""


class JobStore:
    """All jobs of one control plane."""

    def __init__(self, where: str | Path) -> None:
        """`where`: a file of SQLite (made if missing) or a URL. Raises StateError for another schema version, StoreUnavailable."""
        self._engine = database.open_engine(where)
        self._changes = database.changes_of(self._engine)
        self._together = GroupCommit(self._engine)
        with self._write() as connection:
            database.lock_key(connection, "tables")
            tables.metadata.create_all(connection, tables=[tables.meta])
            tables.check_schema(connection, database.shown(where))
            tables.metadata.create_all(connection)

    @property
    def engine(self) -> sa.Engine:
        """For the other tables of the same control plane."""
        return self._engine

    def close(self) -> None:
        self._changes.close()
        self._engine.dispose()

    def wait_for_change(self, limit_s: float) -> bool:
        """Until something was written since the last call, or for `limit_s`. Returns whether it was. One thread may call it."""
        return self._changes.wait(limit_s)

    # jobs

    def put(self, job: Job, events: Sequence[Event] = (), also: Sequence[database.Also] = ()) -> None:
        """Add a new job, and execute `also` in the same transaction. Raises StateError if the id is taken."""
        row = job_to_dict(job)

        def write(connection: sa.Connection) -> None:
            connection.execute(_INSERT_JOB, row)
            _append(connection, job.id, events)
            database.execute(connection, also)

        try:
            self._together.run(write)
        except sa.exc.IntegrityError as error:
            raise StateError(f"there is already a job named {job.id}") from error

    def get(self, job_id: str) -> Job:
        """Raises JobNotFound naming the nearest id."""
        with self._engine.connect() as connection:
            row = connection.execute(_JOB, {"id": job_id}).mappings().first()
        if row is None:
            raise self._not_found(job_id)
        return _job(row)

    def find(self, prefix: str) -> Job:
        """The job whose id is `prefix`, or the only one that begins with it. Raises JobNotFound, listing the candidates."""
        with self._engine.connect() as connection:
            row = connection.execute(_JOB, {"id": prefix.replace("\0", "")}).mappings().first()
        if row is not None:
            return _job(row)
        ids = self._ids()
        matches = [job_id for job_id in ids if prefix and job_id.startswith(prefix)]
        if not matches:
            raise self._not_found(prefix)
        if len(matches) > 1:
            raise JobNotFound(f"'{prefix}' fits {len(matches)} jobs: {', '.join(matches[-10:])}. Give more of the name.")
        return self.get(matches[0])

    def all(self, states: Iterable[JobState] | None = None) -> list[Job]:
        """Jobs in the order of their submission, of all states or of those given."""
        query = sa.select(tables.jobs).order_by(tables.jobs.c.submitted_s, tables.jobs.c.id)
        if states is not None:
            query = query.where(tables.jobs.c.state.in_([state.value for state in states]))
        with self._engine.connect() as connection:
            return [_job(row) for row in connection.execute(query).mappings()]

    def summaries(self, states: Collection[JobState] | None = None, limit: int = 0) -> list[JobSummary]:
        """What a list shows, in the order of submission; of more than `limit` (0: none) those that have not ended, then the newest."""
        with self._engine.connect() as connection:
            return read_summaries(connection, tables.jobs, states, limit)

    def count(self, states: Collection[JobState] | None = None) -> int:
        query = sa.select(sa.func.count()).select_from(tables.jobs)
        if states is not None:
            query = query.where(tables.jobs.c.state.in_([state.value for state in states]))
        with self._engine.connect() as connection:
            return int(connection.execute(query).scalar() or 0)

    def live(self, known: Mapping[str, int]) -> tuple[list[str], list[Job]]:
        """(the ids of all jobs that have not ended, in the order of their submission; those of them whose version is not the `known`)."""
        table = tables.jobs.c
        with self._engine.connect() as connection:
            found = connection.execute(_LIVE_VERSIONS).all()
            changed = [job_id for job_id, version in found if known.get(job_id) != version]
            parts = [changed[first : first + _MANY] for first in range(0, len(changed), _MANY)]
            rows = [row for part in parts for row in connection.execute(sa.select(tables.jobs).where(table.id.in_(part))).mappings()]
        return [job_id for job_id, _ in found], [_job(row) for row in rows]

    def states(self, job_ids: Iterable[str]) -> dict[str, JobState]:
        """Of those that there are."""
        query = sa.select(tables.jobs.c.id, tables.jobs.c.state).where(tables.jobs.c.id.in_(sorted(set(job_ids))))
        with self._engine.connect() as connection:
            return {job_id: JobState(state) for job_id, state in connection.execute(query)}

    def tell_waiting(self, jobs: Sequence[Job], events: Sequence[Event]) -> None:
        """Write why and how long jobs wait. A row that has changed since is left as it is; no version grows: nobody decides by these."""
        rows = [_written(job, fields_to_dict(job, _WAITING)) for job in jobs]
        with self._write() as connection:
            if rows:
                connection.execute(_update_of(_WAITING), rows)
            for event in events:
                _append(connection, event.job_id, [event])

    def update(
        self, job: Job, events: Sequence[Event] = (), stay: Stay | None = None, *, also: Sequence[database.Also] = (), **changes: Any
    ) -> Job:
        """Write `changes` to the row that `job` was read from, append `events` and `stay` and execute `also`, in one transaction.

        Raises StaleWrite if the row changed since, IllegalTransition if the new state does not follow from the old one.
        """
        new = dataclasses.replace(job, **changes, version=job.version + 1)
        if new.state is not job.state:
            check_transition(job.state, new.state)
        fields = fields_to_dict(new, ("version", *sorted(changes)))
        with self._write() as connection:
            written = connection.execute(_update_of(tuple(fields)), _written(job, fields))
            if written.rowcount != 1:
                raise StaleWrite(f"{job.id} changed since it was read (version {job.version})")
            _append(connection, job.id, events)
            database.execute(connection, [*also, *([(tables.stays.insert(), vars(stay))] if stay is not None else [])])
        return new

    # events

    def append_from(self, job_id: str, source: str, numbered: Sequence[tuple[int, Event]]) -> int:
        """Append what a source tells, each of its sequence numbers once and in order. Returns the highest number now held."""
        with self._write() as connection:
            database.lock_key(connection, f"events of {job_id}")
            held = _cursor(connection, job_id, source)
            fresh = sorted((seq, event) for seq, event in dict(numbered).items() if seq > held)
            for seq, event in fresh:
                _append(connection, job_id, [event], source, seq)
        return fresh[-1][0] if fresh else held

    def cursor(self, job_id: str, source: str) -> int:
        """The highest sequence number held of a source's events; 0 if none."""
        with self._engine.connect() as connection:
            return _cursor(connection, job_id, source)

    def events(self, job_id: str, after: int = 0, limit: int | None = None) -> list[tuple[int, Event]]:
        """(sequence number, event) in order, of those with a number above `after`; the first `limit` of them."""
        table = tables.events
        query = sa.select(table).where(table.c.job_id == job_id, table.c.seq > after).order_by(table.c.seq).limit(limit)
        with self._engine.connect() as connection:
            return [(row["seq"], _event(row)) for row in connection.execute(query).mappings()]

    def last_event(self, job_id: str, kind: EventKind, since_s: float = 0.0, source: str = "") -> Event | None:
        """The newest of that kind, no older than that, of those whose source begins with `source`."""
        table = tables.events.c
        mine = (table.job_id == job_id, table.kind == kind.name, table.time_s >= since_s, table.source.startswith(source, autoescape=True))
        query = sa.select(tables.events).where(*mine).order_by(table.seq.desc()).limit(1)
        with self._engine.connect() as connection:
            row = connection.execute(query).mappings().first()
        return None if row is None else _event(row)

    # tenants

    def stays(self, after: int = 0) -> list[tuple[int, Stay]]:
        """(number, stay) of the newest with a number above `after`, oldest first."""
        seq = tables.stays.c.seq
        query = sa.select(tables.stays).where(seq > after).order_by(seq.desc()).limit(MAX_STAYS)
        with self._engine.connect() as connection:
            found = [dict(row) for row in connection.execute(query).mappings()]
        return [(row.pop("seq"), Stay(**row)) for row in reversed(found)]

    # machines

    def incidents(self, since_s: float) -> list[Incident]:
        """What has spoken against machines since then (seconds since 1970), in order of time."""
        table = tables.incidents.c
        columns = [column for column in table if column.name != "seq"]
        query = sa.select(*columns).where(table.time_s >= since_s).order_by(table.time_s, table.job_id)
        with self._engine.connect() as connection:
            return [Incident(**{**row, "kind": IncidentKind[row["kind"]]}) for row in connection.execute(query).mappings()]

    def forgive(self, node: str) -> int:
        """Nothing that has happened speaks against the machine any more. Returns how many incidents there were."""
        with self._write() as connection:
            return int(connection.execute(tables.incidents.delete().where(tables.incidents.c.node == node)).rowcount)

    # facts of the control plane

    def set_meta(self, key: str, value: Any) -> None:
        with self._write() as connection:
            database.lock_key(connection, f"meta {key}")
            connection.execute(tables.meta.delete().where(tables.meta.c.key == key))
            connection.execute(tables.meta.insert().values(key=key, value=value))

    def meta(self, key: str) -> Any:
        """The JSON value under `key`, None if there is none."""
        with self._engine.connect() as connection:
            return connection.execute(_META, {"key": key}).scalar()

    def _write(self) -> Any:
        """A transaction that takes the write lock at once, so that it never has to be upgraded (and refused) midway."""
        return self._engine.execution_options(writes=True).begin()

    def _ids(self) -> list[str]:
        with self._engine.connect() as connection:
            return list(connection.execute(sa.select(tables.jobs.c.id).order_by(tables.jobs.c.submitted_s)).scalars())

    def _not_found(self, wanted: str) -> JobNotFound:
        ids = self._ids()
        known = f"Known: {', '.join(ids[-10:])}." if ids else "There is none yet."
        return JobNotFound(f"no job is named '{wanted}'. {known}{nearest(wanted, ids)}")


@cache
def _update_of(names: tuple[str, ...]) -> sa.Update:
    """Of these fields, in the row that is still as it was read; its values: `_written`."""
    table = tables.jobs.c
    same_row = sa.and_(table.id == sa.bindparam("old_id"), table.version == sa.bindparam("old_version"))
    return tables.jobs.update().where(same_row).values({name: sa.bindparam(f"new_{name}") for name in names})


def _written(job: Job, fields: Mapping[str, Any]) -> dict[str, Any]:
    return {"old_id": job.id, "old_version": job.version, **{f"new_{name}": value for name, value in fields.items()}}


def _append(connection: sa.Connection, job_id: str, events: Sequence[Event], source: str = "", source_seq: int = 0) -> None:
    if not events:
        return
    database.lock_key(connection, f"events of {job_id}")
    last = connection.execute(_LAST_EVENT, {"job_id": job_id}).scalar() or 0
    rows = [
        {
            "job_id": job_id, "seq": last + 1 + index, "kind": event.kind.name, "time_s": event.time_s, "message": event.message,
            "fields": dict(event.fields), "source": source, "source_seq": source_seq,
        }
        for index, event in enumerate(events)
    ]  # fmt: skip
    connection.execute(_INSERT_EVENT, rows)
    against = [
        {"job_id": job_id, "seq": last + 1 + index, "time_s": event.time_s, **_against(event)}
        for index, event in enumerate(events)
        if event.fields.get("incident") in IncidentKind.__members__
    ]
    if against:
        connection.execute(tables.incidents.insert(), against)


def _against(event: Event) -> dict[str, str]:
    """What an event says against a machine."""
    told = {"kind": event.fields["incident"], "node": event.fields["node"], "gpu": event.fields.get("gpu", "")}
    return {**told, "message": event.message.partition("\n")[0]}


def _cursor(connection: sa.Connection, job_id: str, source: str) -> int:
    mine = sa.and_(tables.events.c.job_id == job_id, tables.events.c.source == source)
    return connection.execute(sa.select(sa.func.max(tables.events.c.source_seq)).where(mine)).scalar() or 0


def _job(row: sa.RowMapping) -> Job:
    return job_from_dict({str(column): value for column, value in row.items()})


def _event(row: Any) -> Event:
    kind = EventKind[row["kind"]]
    return Event(kind=kind, job_id=row["job_id"], time_s=row["time_s"], message=row["message"], fields=row["fields"])
