"""The database under the job store: SQLite embedded, PostgreSQL for a team. All that differs between the two is in this module.

SQLite in write-ahead mode with `synchronous=FULL`: what a transaction returned from survives a power cut. Any number of processes may
read and write at once; each write is one short transaction. PostgreSQL needs `pip install 'orchestrator[postgres]'`.
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import sqlalchemy as sa

from orchestrator.errors import ConfigError, StoreUnavailable
from orchestrator.paths import Home, make_private, write_private

DATABASE_VARIABLE = "ORCHESTRATOR_DATABASE"
LARGEST_NUMBER = 2**53
"""Of a row that is asked for: beyond it JSON's numbers are not exact, and a little further SQLite has none."""
LOOK_S = 0.005
_BUSY_TIMEOUT_MS = 20_000
_CHANNEL = "orchestrator"
_PROMPT = {"connect_timeout": 10, "keepalives_idle": 10, "keepalives_interval": 5, "keepalives_count": 3, "tcp_user_timeout": 20_000}
"""Of libpq: a server whose machine is gone is known to be in half a minute; the kernel's own times are hours."""
_ALLOWED = "allowed are postgresql://USER@HOST:5432/NAME and sqlite:////FILE."
_POOL = {"pool_size": 16, "max_overflow": 48, "pool_timeout": 20}

Also = tuple[sa.Executable, Mapping[str, Any]]
"""A statement, and its values."""

log = logging.getLogger("store")


class Json(sa.types.TypeDecorator[Any]):
    """JSON as text: PostgreSQL's own type refuses figures that are no number, which a loss may become."""

    impl = sa.Text
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: Any) -> str | None:
        return None if value is None else json.dumps(value, sort_keys=True)

    def process_result_value(self, value: Any, dialect: Any) -> Any:
        return None if value is None else json.loads(value)


class Words(sa.types.TypeDecorator[str]):
    """Text from anywhere, as the words of an error: what no database can hold is replaced."""

    impl = sa.Text
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Any) -> str | None:
        return None if value is None else value.replace("\x00", "\ufffd").encode(errors="replace").decode()


def place_of(home: Home) -> str:
    """Where the jobs of `home` are kept: the URL that `serve --db` was given, else the file of SQLite. Raises ConfigError."""
    if chosen := os.environ.get(DATABASE_VARIABLE):
        _parsed(chosen)
        return chosen
    try:
        return home.database.read_text().strip()
    except FileNotFoundError:
        return str(home.jobs_db)


def exists(home: Home) -> bool:
    """Whether jobs were ever kept for `home`."""
    return "://" in place_of(home) or home.jobs_db.exists()


def choose(home: Home, url: str) -> None:
    """From now on the jobs of `home` are kept at `url`. Raises ConfigError for what is none, or shows a password to everybody."""
    write_private(home.database, f"{as_argument(url)}\n")


def as_argument(url: str) -> str:
    """`url` as it came on a command line. Raises ConfigError for what is no database, or shows a password to everybody."""
    if _parsed(url).password is not None:
        raise ConfigError(
            "--db holds a password, which everybody on this machine can read there. Keep it in ~/.pgpass and leave it out of the URL, "
            f"or set ${DATABASE_VARIABLE} instead of --db."
        )
    return url


def shown(where: str | Path) -> str:
    """Without its password."""
    return _parsed(str(where)).render_as_string(hide_password=True) if "://" in str(where) else str(where)


def _parsed(url: str) -> sa.URL:
    """Raises ConfigError, without the password that may stand anywhere in what is no URL."""
    try:
        parsed = sa.make_url(url)
    except (sa.exc.ArgumentError, ValueError):
        raise ConfigError(f"the URL of the job store is no database: {_ALLOWED}") from None
    if "@" in (parsed.host or ""):
        raise ConfigError(f"the URL of the job store is no database: an '@' in a password is written %40. {_ALLOWED}")
    if parsed.get_backend_name() not in ("sqlite", "postgresql", "postgres"):
        raise ConfigError(f"{shown_name(parsed)} is no database for jobs: {_ALLOWED}")
    return parsed


def shown_name(url: sa.URL) -> str:
    return url.render_as_string(hide_password=True)


def open_engine(where: str | Path) -> sa.Engine:
    """Of a file of SQLite (made if missing) or a URL. Connects at first use. Raises ConfigError."""
    text = str(where)
    if "://" not in text:
        make_private(Path(text).parent)
        text = f"sqlite:///{text}"
    url = _parsed(text)
    if url.get_backend_name() == "sqlite":
        engine = sa.create_engine(url, **_POOL)
        sa.event.listen(engine, "connect", _set_up_sqlite)
        sa.event.listen(engine, "begin", _begin_sqlite)
        sa.event.listen(engine, "handle_error", _unavailable)
        return engine
    try:
        engine = sa.create_engine(url.set(drivername="postgresql+psycopg"), pool_pre_ping=True, connect_args=_PROMPT, **_POOL)
    except ImportError as error:
        raise ConfigError(f"{shown_name(url)} needs PostgreSQL's driver: pip install 'orchestrator[postgres]'") from error
    sa.event.listen(engine, "connect", _set_up_postgres)
    sa.event.listen(engine, "begin", _begin_postgres)
    sa.event.listen(engine, "handle_error", _unavailable)
    return engine


def _set_up_sqlite(connection: Any, _record: Any) -> None:
    connection.isolation_level = None  # the driver must not open transactions of its own: `_begin_sqlite` does
    connection.execute(f"PRAGMA busy_timeout={_BUSY_TIMEOUT_MS}")
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=FULL")


def _set_up_postgres(connection: Any, _record: Any) -> None:
    """What a machine that went away midway has locked is free again when its lease is over."""
    connection.execute("SET idle_in_transaction_session_timeout = '15s'")
    connection.execute("SET lock_timeout = '20s'")
    connection.commit()


def _begin_sqlite(connection: sa.Connection) -> None:
    writes = connection.get_execution_options().get("writes", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


def _begin_postgres(connection: sa.Connection) -> None:
    """Who waits for a change is told when the transaction commits."""
    if connection.get_execution_options().get("writes", False):
        connection.exec_driver_sql(f"NOTIFY {_CHANNEL}")


def _unavailable(context: Any) -> None:
    """Raises StoreUnavailable where the database cannot be reached, is full or stays locked. A ping that fails costs its connection."""
    if context.is_pre_ping:
        return
    if isinstance(context.sqlalchemy_exception, sa.exc.OperationalError):
        why = str(context.original_exception).strip().partition("\n")[0]
        where = f" {shown_name(context.engine.url)}" if context.engine is not None else ""
        raise StoreUnavailable(f"the job store{where} does not answer: {why}") from context.original_exception


@contextmanager
def writing(engine: sa.Engine) -> Iterator[sa.Connection]:
    """A transaction that takes SQLite's write lock at once, so that it never has to be upgraded (and refused) midway."""
    with engine.execution_options(writes=True).begin() as connection:
        yield connection


def execute(connection: sa.Connection, statements: Iterable[Also]) -> None:
    for statement, values in statements:
        connection.execute(statement, dict(values))


def checked_number(name: str, value: int) -> int:
    """As given, if a row can have it. Raises ConfigError."""
    if not 0 <= value <= LARGEST_NUMBER:
        raise ConfigError(f"{name} {value} is not possible: allowed is a number from 0 to {LARGEST_NUMBER}.")
    return value


def lock_key(connection: sa.Connection, key: str) -> None:
    """Until the transaction ends no other one that locks `key` goes on. SQLite has one writer at a time anyway."""
    if connection.dialect.name == "postgresql":
        connection.execute(sa.select(sa.func.pg_advisory_xact_lock(sa.func.hashtextextended(key, 0))))


def json_of(connection: sa.Connection, column: sa.Column[Any]) -> Any:
    """A column of strict JSON (a spec is, a progress may hold figures that are none) as one whose parts the database reads."""
    return sa.cast(column, sa.JSON) if connection.dialect.name == "postgresql" else sa.type_coerce(column, sa.JSON)


def create_tables(engine: sa.Engine, *tables: sa.Table) -> None:
    """Those that are missing."""
    with writing(engine) as connection:
        lock_key(connection, "tables")
        tables[0].metadata.create_all(connection, tables=tables)


class Changes(Protocol):
    """Tells when the database was written to. One thread uses it."""

    def wait(self, limit_s: float) -> bool:
        """Until something was written since the last call, or for `limit_s`. Returns whether it was."""

    def close(self) -> None: ...


def changes_of(engine: sa.Engine) -> Changes:
    return PostgresChanges(engine) if engine.dialect.name == "postgresql" else SqliteChanges(engine)


class SqliteChanges:
    """Looks at a number that grows with each commit of any other connection; it is read from shared memory in some microseconds."""

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine
        self._connection: Any = None
        self._seen = 0

    def wait(self, limit_s: float) -> bool:
        deadline = time.monotonic() + limit_s
        while (version := self._version()) == self._seen and (left_s := deadline - time.monotonic()) > 0:
            time.sleep(min(LOOK_S, left_s))
        changed, self._seen = version != self._seen, version
        return changed

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()

    def _version(self) -> int:
        if self._connection is None:
            self._connection = self._engine.raw_connection()
        return int(self._connection.cursor().execute("PRAGMA data_version").fetchone()[0])


class PostgresChanges:
    """Listens to what every write transaction notifies of, on a connection of its own."""

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine
        self._connection: Any = None

    def wait(self, limit_s: float) -> bool:
        """True as well after a connection was made or lost: what happened meanwhile was not heard."""
        began = time.monotonic()
        try:
            if self._connection is None:
                self._connection = self._listen()
                return True
            heard = any(True for _ in self._connection.notifies(timeout=limit_s, stop_after=1))
            return any(True for _ in self._connection.notifies(timeout=0)) or heard  # all that came at the same time is one change
        except self._failures() as error:
            log.warning("the job store's changes are not heard: %s", str(error).partition("\n")[0])
            self.close()
            time.sleep(max(0.0, limit_s - (time.monotonic() - began)))
            return True

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _listen(self) -> Any:
        pooled = self._engine.raw_connection()
        connection: Any = pooled.driver_connection
        pooled.detach()
        connection.autocommit = True
        connection.execute(f"LISTEN {_CHANNEL}")
        return connection

    def _failures(self) -> tuple[type[BaseException], ...]:
        driver: Any = self._engine.dialect.dbapi
        return (driver.Error, StoreUnavailable, sa.exc.DBAPIError, sa.exc.TimeoutError)
