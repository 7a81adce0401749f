"""Who is the controller: the holder of a lock file, which also says for which cluster and whether it is ready."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

from orchestrator.control.file_locks import try_lock
from orchestrator.control.processes import is_same, start_time
from orchestrator.paths import Home, make_private

_RECORD_BYTES = 1024


@dataclass(frozen=True, kw_only=True)
class Holder:
    """A living controller."""

    pid: int
    created: float
    address: str
    ready: bool = False


class ControllerLock:
    """Held as long as the process lives: the kernel lets go of it, whatever the process dies of."""

    def __init__(self, home: Home) -> None:
        make_private(home.root)
        self._descriptor = os.open(home.controller_lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def acquire(self) -> bool:
        """False if another process holds it."""
        return try_lock(self._descriptor)

    def publish(self, address: str, ready: bool) -> None:
        created = start_time(os.getpid())
        record = json.dumps(asdict(Holder(pid=os.getpid(), created=created or 0.0, address=address, ready=ready)))
        os.pwrite(self._descriptor, record.encode().ljust(_RECORD_BYTES), 0)  # one write of fixed size: readers see it whole


def holder(home: Home) -> Holder | None:
    """The living controller of the home; None if there is none, or it has not yet said who it is."""
    try:
        found = Holder(**json.loads(home.controller_lock.read_bytes()))
    except (FileNotFoundError, ValueError, TypeError):
        return None
    return found if is_same(found.pid, found.created) else None


def cluster_lock(home: Home) -> Path:
    """Held while the cluster is found, started or stopped."""
    return home.root / "cluster.lock"
