"""Who controls the jobs of a store, also where controllers on several machines share it: the holder of a row that expires.

A lock file (`control/lock.py`) keeps a second controller away on one machine; this row does so on all. The holder renews it from a thread
of its own and gives up when it could not in time, so that the next one never meets it at work: another thread watches that, which waits
for no database, and ends the process. Times are the database's.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from orchestrator.control.processes import is_same, start_time
from orchestrator.control.records.database import Json, create_tables, lock_key, writing
from orchestrator.control.records.tables import metadata
from orchestrator.errors import StateError, StoreUnavailable

DURATION_S = 15.0
RENEW_S = 4.0
WATCH_S = 0.5
MARGIN_S = 3.0
"""The holder stops acting so long before the row expires."""
_NAME = "controller"

TABLE = sa.Table(
    "leases",
    metadata,
    sa.Column("name", sa.String, primary_key=True),
    sa.Column("holder", Json, nullable=False),
    sa.Column("expires_s", sa.Float, nullable=False),
)

log = logging.getLogger("lease")


class ControllerLease:
    """Of one store. `acquire`, then `keep`, and act only while `held`."""

    def __init__(
        self, engine: sa.Engine, duration_s: float = DURATION_S, clock: Callable[[], float] | None = None,
        me: dict[str, Any] | None = None,
    ) -> None:  # fmt: skip
        self._engine = engine
        self._duration_s = duration_s
        self._margin_s = MARGIN_S * duration_s / DURATION_S
        self._clock = clock or _clock_of(engine)
        self._me = me or _this_process()
        self._until = float("-inf")
        self._stop = threading.Event()
        create_tables(engine, TABLE)

    @property
    def held(self) -> bool:
        """By this machine's clock, with a margin: no other controller can have taken it yet."""
        return self._clock() < self._until

    def acquire(self) -> None:
        """Raises StateError, which names the holder, while another controller's lease is alive."""
        asked = self._clock()
        with writing(self._engine) as connection:
            lock_key(connection, f"lease {_NAME}")
            row = connection.execute(sa.select(TABLE).where(TABLE.c.name == _NAME)).mappings().first()
            now = _now(connection)
            if row is not None and row["holder"] != self._me and row["expires_s"] > now and not _is_dead(row["holder"]):
                raise StateError(_refusal(row["holder"], row["expires_s"] - now))
            connection.execute(TABLE.delete().where(TABLE.c.name == _NAME))
            connection.execute(TABLE.insert().values(name=_NAME, holder=self._me, expires_s=now + self._duration_s))
        self._until = asked + self._duration_s - self._margin_s

    def renew(self) -> bool:
        """False if another one has it: it was not renewed in time."""
        asked = self._clock()
        with writing(self._engine) as connection:
            lock_key(connection, f"lease {_NAME}")  # or else one that takes it over might delete the row as it is renewed
            mine = sa.and_(TABLE.c.name == _NAME, TABLE.c.holder == self._me)
            renewed = connection.execute(TABLE.update().where(mine).values(expires_s=_now(connection) + self._duration_s))
        if renewed.rowcount != 1:
            self._until = float("-inf")
            return False
        self._until = asked + self._duration_s - self._margin_s
        return True

    def keep(self, lost: Callable[[], object] = lambda: None) -> None:
        """Renew it from a thread until `release`. `lost` is called from another one when it is not held any more."""
        threading.Thread(target=self._keep, name="lease", daemon=True).start()
        threading.Thread(target=self._watch, args=(lost,), name="lease watch", daemon=True).start()

    def release(self) -> None:
        """The next controller need not wait for its end."""
        self._stop.set()
        self._until = float("-inf")
        with writing(self._engine) as connection:
            connection.execute(TABLE.delete().where(TABLE.c.name == _NAME, TABLE.c.holder == self._me))

    def _keep(self) -> None:
        while not self._stop.wait(RENEW_S * self._duration_s / DURATION_S):
            try:
                if not self.renew():
                    log.error("another controller has taken the lease")
                    return
            except StoreUnavailable as error:
                log.warning("the lease could not be renewed: %s", error)

    def _watch(self, lost: Callable[[], object]) -> None:
        while not self._stop.wait(WATCH_S * self._duration_s / DURATION_S):
            if not self.held and not self._stop.is_set():
                self._stop.set()  # the next one need not wait for long
                lost()
                return


def living(engine: sa.Engine) -> dict[str, Any] | None:
    """Who holds a lease that is alive: `host`, `pid` ...; None: nobody."""
    create_tables(engine, TABLE)
    with engine.connect() as connection:
        row = connection.execute(sa.select(TABLE).where(TABLE.c.name == _NAME)).mappings().first()
        alive = row is not None and row["expires_s"] > _now(connection) and not _is_dead(row["holder"])
    return dict(row["holder"]) if row is not None and alive else None


def _clock_of(engine: sa.Engine) -> Callable[[], float]:
    """Of a database that other machines use one that goes on while this machine is suspended. SQLite's file is this machine's, where the
    lock file keeps others away meanwhile."""
    return time.monotonic if engine.dialect.name == "sqlite" else partial(time.clock_gettime, time.CLOCK_BOOTTIME)


def _now(connection: sa.Connection) -> float:
    """Seconds since 1970 by the database's clock; SQLite's is this machine's."""
    if connection.dialect.name == "postgresql":
        return float(connection.execute(sa.text("SELECT extract(epoch FROM clock_timestamp())")).scalar_one())
    return time.time()


def _refusal(holder: dict[str, Any], left_s: float) -> str:
    return (
        f"another controller serves this job store: pid {holder['pid']} on {holder['host']}; its lease lives for {left_s:.0f} s more "
        "unless it is renewed. Two at a time would start jobs twice: stop that one, or give this one a store of its own (--db, --home)."
    )


def _this_process() -> dict[str, Any]:
    return {"host": socket.gethostname(), "machine": _machine(), "pid": os.getpid(), "created": start_time(os.getpid())}


def _machine() -> str:
    """The same for two processes that can see each other's pids: this boot of the kernel, this namespace of pids."""
    try:
        return f"{Path('/proc/sys/kernel/random/boot_id').read_text().strip()}:{Path('/proc/self/ns/pid').stat().st_ino}"
    except OSError:
        return ""


def _is_dead(holder: dict[str, Any]) -> bool:
    """Its process was on this machine and is gone: nobody has to wait for its lease to end."""
    return holder["machine"] != "" and holder["machine"] == _machine() and not is_same(holder["pid"], holder["created"])
