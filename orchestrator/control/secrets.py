"""What submitters hand over for their jobs' processes, as S3 keys: one private file for each job, from its submission to its end."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from orchestrator.control.file_locks import exclusive, if_free
from orchestrator.control.records.store import JobStore
from orchestrator.paths import Home, write_private

ORPHAN_S = 86_400.0
"""What is of no job that the store knows is deleted when it is so old: its submission was broken off."""

log = logging.getLogger("controller")


class Secrets:
    """Of one home."""

    def __init__(self, home: Home) -> None:
        self._home = home

    def write(self, job_id: str, secrets: Mapping[str, str]) -> None:
        """In place of those that there are; none are no change."""
        if secrets:
            write_private(self._home.secrets(job_id), json.dumps(dict(secrets)))

    def read(self, job_id: str) -> dict[str, str]:
        try:
            found: dict[str, str] = json.loads(self._home.secrets(job_id).read_text())
        except FileNotFoundError:
            return {}
        return found

    @contextmanager
    def kept(self) -> Iterator[None]:
        """None are deleted meanwhile: for who writes those of a job that has ended, and then its row."""
        with exclusive(self._home.secrets_lock, on_wait=lambda: None):
            yield

    def forget(self, store: JobStore, job_id: str) -> None:
        """If the job has still ended: somebody may have resumed it since."""
        path = self._home.secrets(job_id)
        if path.exists():
            self._delete(store, [path], orphaned_s=float("-inf"))

    def sweep(self, store: JobStore, now_s: float) -> None:
        """Delete what a controller that died did not: of jobs that have ended, and of none. `now_s`: seconds since 1970."""
        left = list(self._home.secrets_folder.glob("*"))
        if left:
            self._delete(store, left, orphaned_s=now_s - ORPHAN_S)

    def _delete(self, store: JobStore, paths: Sequence[Path], orphaned_s: float) -> None:
        """Does not wait: while somebody resumes a job nothing is deleted."""
        with if_free(self._home.secrets_lock) as free:
            if not free:
                log.info("a job is being resumed: the secrets of %d others stay until the next start", len(paths))
                return
            states = store.states(path.stem for path in paths)
            for path in paths:
                state = states.get(path.stem)
                if state.terminal if state is not None else _older(path, orphaned_s):
                    path.unlink(missing_ok=True)


def _older(path: Path, limit_s: float) -> bool:
    try:
        return path.stat().st_mtime < limit_s
    except FileNotFoundError:  # a draft, which has its name now
        return False
