"""Find the node's warm process, or start it."""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path

import orchestrator
from orchestrator.code.origin import shipped_folder
from orchestrator.errors import ClusterError
from orchestrator.paths import Home
from orchestrator.runtime.warm_place import call_newest, socket_name

RANK_ENTRY = "orchestrator.runtime.rank:main"
MAX_SOCKET_PATH_BYTES = 107
START_LIMIT_S = 120.0
START_AGAIN_S = 5.0
OWN_IDLE_LIMIT_S = 60.0
"""How long a warm process with a job's own variables waits for another job that has them."""
_PACKAGES = ("torch", "deepspeed", "transformers", "numpy", "ray")


def connect(home: Home, entry: str, watch_pid: int, variables: Mapping[str, str] | None = None) -> socket.socket:
    """A connection to this node's warm process for this environment, started if there is none. Raises ClusterError.

    `variables`: of a job's own; a process that has them serves only jobs with the same ones, and leaves soon after them.
    """
    path = socket_path(home, entry, variables)
    call_newest(path)
    give_up = time.monotonic() + START_LIMIT_S
    start_again = 0.0
    while True:
        found = _try_connect(path)
        if found is not None:
            return found
        now = time.monotonic()
        if now > give_up:
            raise ClusterError(f"the warm process did not start within {START_LIMIT_S:.0f} s; see {log_path(home)}: {log_tail(home)}")
        if now > start_again:
            start(home, watch_pid, os.environ, entry, variables)
            start_again = time.monotonic() + START_AGAIN_S
        time.sleep(0.01)


def start(
    home: Home, watch_pid: int, environ: Mapping[str, str], entry: str = RANK_ENTRY, variables: Mapping[str, str] | None = None
) -> None:  # fmt: skip
    """Start this node's warm process; it leaves when `watch_pid` is gone. A second one finds the lock held and leaves.

    It detaches itself, so this returns as soon as it has its own process; `connect` waits for it.
    """
    path = socket_path(home, entry, variables)
    call_newest(path)
    log_path(home).parent.mkdir(parents=True, exist_ok=True)
    # The GPUs are the ranks' to see, not the process's that starts this one.
    environment = {name: value for name, value in environ.items() if name != "CUDA_VISIBLE_DEVICES"}
    environment.update(variables or {})
    command = [sys.executable, "-m", "orchestrator.runtime.warm", "--socket", str(path), "--watch-pid", str(watch_pid)]
    command += ["--idle-limit-s", str(OWN_IDLE_LIMIT_S)] if variables else []
    with log_path(home).open("ab") as log:
        subprocess.run(
            [*command, "--entry", entry, "--detach"], stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment, cwd="/",
            start_new_session=True, check=False,
        )  # fmt: skip


def socket_path(home: Home, entry: str = RANK_ENTRY, variables: Mapping[str, str] | None = None) -> Path:
    """The place of the socket; in a private folder under the temporary one if the home's path is too long for a socket."""
    own = f" {sorted(variables.items())}" if variables else ""
    name = socket_name(_digest(f"{sys.executable} {entry}{own}"), content())
    return short_folder(home.root / "node", name) / name


def short_folder(wanted: Path, name: str) -> Path:
    """`wanted`, or a folder of this user's that keeps the path of the socket `name` in it within the system's limit. Made if missing."""
    folder = wanted
    if len(os.fsencode(wanted / name)) > MAX_SOCKET_PATH_BYTES:
        digest = hashlib.sha256(os.fsencode(wanted)).hexdigest()[:12]
        folder = Path(tempfile.gettempdir()) / f"orchestrator-{os.getuid()}-{digest}"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if folder.stat().st_uid != os.getuid():
        raise ClusterError(f"{folder} belongs to another user; sockets there would be theirs")
    return folder


def log_path(home: Home) -> Path:
    return home.log("warm")


def log_tail(home: Home, num_bytes: int = 4000) -> str:
    """The end of the warm process's output; where an import that fails says why."""
    path = log_path(home)
    return path.read_bytes()[-num_bytes:].decode(errors="replace") if path.exists() else ""


def _try_connect(path: Path) -> socket.socket | None:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.connect(str(path))
    except (FileNotFoundError, ConnectionRefusedError):
        connection.close()
        return None
    return connection


def content() -> str:
    """Changes with anything that the warm process or an actor has imported: no job runs yesterday's code. It is asked before each job."""
    sources = [line for root in (next(iter(orchestrator.__path__)), str(shipped_folder())) for line in _sources(root)]
    return _digest("\n".join([*sources, *_versions(_folders())]))


def _sources(root: str) -> list[str]:
    found, folders = [], [root]
    while folders:
        with os.scandir(folders.pop()) as entries:
            for entry in entries:
                if entry.is_dir():
                    folders.append(entry.path)
                elif entry.name.endswith(".py"):
                    status = entry.stat()
                    found.append(f"{entry.path.removeprefix(root)} {status.st_mtime_ns} {status.st_size}")
    return sorted(found)


def _folders() -> tuple[tuple[str, int], ...]:
    """Where packages may be installed, each with when one last was, or was removed."""
    return tuple((str(folder), folder.stat().st_mtime_ns) for folder in map(Path, sys.path) if folder.is_dir())


@lru_cache(maxsize=1)
def _versions(_: tuple[tuple[str, int], ...]) -> list[str]:
    """Read again only when a package came or went: to read them takes longer than all the rest."""
    return [f"{package} {_version(package)}" for package in _PACKAGES]


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "none"
