"""A job store as a file of JSON lines, and back: to a store of this program's schema, to PostgreSQL, or to another machine.

The first line says what the file is; each other one holds a row: `{"table": ..., "row": {column: value}}`. Whatever wrote the store, its
rows are taken as they are; on the way back unknown columns are left out and missing ones get what a new job would have.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import sqlalchemy as sa

from orchestrator.control.records import audit, database, lease, tables, users
from orchestrator.errors import StateError, UserError
from orchestrator.job import Job, job_to_dict
from orchestrator.spec import DataSpec, JobSpec, ModelSpec, TrainingSpec, WorkloadSpec

FORMAT = "orchestrator job store"
OTHERS = (audit.TABLE, users.TABLE)
"""Of other modules, which are carried over too; a lease stays behind."""
_OWN = ("schema_version", "cluster")
"""What a store says of itself and of the machines it is used on stays behind, too."""
_BATCH = 500


def export_store(where: str | Path, path: Path) -> dict[str, int]:
    """Write every row of the store to a new file that only its owner can read: of one moment, whatever its schema. Returns rows by table.

    Raises UserError if the file is there already, StateError if there is no store.
    """
    if "://" not in str(where) and not Path(where).exists():
        raise StateError(f"there is no job store at {where}.")
    engine, held = database.open_engine(where), sa.MetaData()
    options = {"isolation_level": "REPEATABLE READ"} if engine.dialect.name == "postgresql" else {}
    with engine.execution_options(**options).connect() as connection:
        held.reflect(connection)
        if tables.meta.name not in held.tables:
            raise StateError(f"there is no job store at {database.shown(where)}.")
        with _new_file(path) as file:
            file.write(json.dumps({"format": FORMAT}) + "\n")
            written = [table for table in held.sorted_tables if table.name != lease.TABLE.name]
            counts = {table.name: _write_rows(connection, table, file) for table in written}
    engine.dispose()
    return counts


def import_store(where: str | Path, path: Path) -> dict[str, int]:
    """Read such a file into a store that holds nothing yet: all of it or, after an error, nothing. Returns rows by table.

    Raises UserError for a file that is none, StateError for a store that is not empty, or that a controller serves.
    """
    engine = database.open_engine(where)
    with _opened(path) as file:
        _check_header(path, file.readline())
        _check_not_served(engine)
        with database.writing(engine) as connection:
            database.lock_key(connection, "tables")
            tables.metadata.create_all(connection)
            tables.check_schema(connection, database.shown(where))
            _check_empty(connection, where)
            counts = _read_rows(connection, path, file)
    engine.dispose()
    return counts


def _new_file(path: Path) -> IO[str]:
    try:
        return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w")
    except FileExistsError as error:
        raise UserError(f"{path} is there already: name a new file.") from error
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror}.") from error


def _write_rows(connection: sa.Connection, table: sa.Table, file: IO[str]) -> int:
    plain = sa.table(table.name, *(sa.column(column.name) for column in table.columns))  # as stored: an older type may decode otherwise
    count = 0
    for row in connection.execute(sa.select(plain)).mappings():
        count += 1
        values = {name: json.loads(value) if _is_json(table.name, name, value) else value for name, value in row.items()}
        file.write(json.dumps({"table": table.name, "row": values}) + "\n")
    return count


def _is_json(table: str, column: str, value: Any) -> bool:
    known = tables.metadata.tables.get(table)
    return isinstance(value, str) and known is not None and column in known.c and isinstance(known.c[column].type, database.Json)


def _opened(path: Path) -> IO[str]:
    try:
        return path.open(encoding="ascii", errors="backslashreplace")  # what is not ASCII is no JSON then, either
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.") from error


def _check_header(path: Path, line: str) -> None:
    try:
        ok = json.loads(line)["format"] == FORMAT
    except (ValueError, TypeError, KeyError):
        ok = False
    if not ok:
        raise UserError(f"{path} was not written by `orchestrator store export`.")


def _check_not_served(engine: sa.Engine) -> None:
    holder = lease.living(engine)
    if holder is not None:
        where = database.shown_name(engine.url)
        raise StateError(f"a controller serves the job store {where} (pid {holder['pid']} on {holder['host']}): stop it before an import.")


def _check_empty(connection: sa.Connection, where: str | Path) -> None:
    held = []
    for table in tables.metadata.sorted_tables:
        others = tables.meta.c.key.not_in(_OWN) if table is tables.meta else sa.true()
        if table is not lease.TABLE and connection.execute(sa.select(table).where(others).limit(1)).first() is not None:
            held.append(table.name)
    if held:
        raise StateError(f"the job store at {database.shown(where)} is not empty, it has {', '.join(held)}: import into a new one.")


def _read_rows(connection: sa.Connection, path: Path, file: IO[str]) -> dict[str, int]:
    counts: Counter[str] = Counter()
    batch: list[dict[str, Any]] = []
    current = ""
    for name, row in _rows(path, file):
        if batch and (name != current or len(batch) >= _BATCH):
            connection.execute(tables.metadata.tables[current].insert(), batch)
            batch = []
        current = name
        batch.append(row)
        counts[name] += 1
    if batch:
        connection.execute(tables.metadata.tables[current].insert(), batch)
    for name in counts:
        _count_on(connection, tables.metadata.tables[name])
    return dict(counts)


def _count_on(connection: sa.Connection, table: sa.Table) -> None:
    """Numbers that the database gives go on after those that were read; SQLite does so by itself."""
    column = table.autoincrement_column
    if column is not None and connection.dialect.name == "postgresql":
        sequence = sa.func.pg_get_serial_sequence(table.name, column.name)
        connection.execute(sa.select(sa.func.setval(sequence, sa.select(sa.func.max(column)).scalar_subquery())))


def _rows(path: Path, file: IO[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """(table, row) with the columns of this program's schema."""
    for number, line in enumerate(file, 2):
        try:
            read = json.loads(line)
            name, row = read["table"], dict(read["row"])
        except (ValueError, TypeError, KeyError) as error:
            raise UserError(f"{path}, line {number} is no row of a job store: the file is damaged.") from error
        table = tables.metadata.tables.get(name)
        if table is not None and row.get("key") not in _OWN:
            filled = {**_NEW_JOB, **row} if table is tables.jobs else row
            yield name, {column.name: filled.get(column.name) for column in table.columns}


_ANY = JobSpec(
    workload=WorkloadSpec(name="any", entrypoint="any:Any"), model=ModelSpec(name="any"), data=DataSpec(name="any"),
    training=TrainingSpec(max_steps=1, global_batch_size=1, micro_batch_size=1),
)  # fmt: skip
_NEW_JOB = job_to_dict(Job(id="any", spec=_ANY))
"""What a column holds that an older store did not have."""
