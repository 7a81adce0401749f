"""Where the verbs go: to this machine's jobs, or to a server."""

from __future__ import annotations

import dataclasses
import os
import re
import stat
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from orchestrator.client.lines import Line, Lines
from orchestrator.code.package import Package, keep_package
from orchestrator.control.client import Client as LocalClient
from orchestrator.control.planning.policy import ChosenPolicy
from orchestrator.control.planning.reputation import Incident
from orchestrator.control.reading.logs import LogLine
from orchestrator.control.reading.questions import Explained, QueueRow
from orchestrator.control.reading.summary import JobSummary
from orchestrator.control.records.audit import Entry
from orchestrator.control.records.users import User
from orchestrator.control.removal import Removed
from orchestrator.control.scheduler import ClusterView
from orchestrator.errors import AuthenticationError, ConfigError
from orchestrator.events import Event
from orchestrator.job import Job, JobState
from orchestrator.paths import TOKEN_FILE_VARIABLE, Home
from orchestrator.spec import JobSpec, StorageSpec
from orchestrator.storage import open_store

SERVER_VARIABLE = "ORCHESTRATOR_SERVER"
TOKEN_VARIABLE = "ORCHESTRATOR_TOKEN"
LOOK_S = 0.2


class UserVerbs(Protocol):
    """`orchestrator.control.administration.Administration`, or over HTTP."""

    def all(self) -> list[User]: ...
    def add(self, name: str, tenant: str = "", role: str = "user") -> str: ...
    def renew(self, name: str) -> str: ...
    def revoke(self, name: str) -> None: ...


class Verbs(Protocol):
    """What can be asked of jobs, here or over HTTP: `orchestrator.control.client.Client`, and waiting for news."""

    home: Home
    remote: bool
    """Over HTTP: the files of the control plane are not to be found here."""

    @property
    def users(self) -> UserVerbs: ...

    def submit(self, spec: JobSpec, secrets: Mapping[str, str]) -> Job: ...
    def keep_code(self, package: Package, storage: StorageSpec, secrets: Mapping[str, str]) -> bool:
        """Put a package where a job with that storage finds it, unless it is there. Returns whether it was put."""

    def jobs(self) -> list[Job]: ...
    def summaries(self, states: Collection[JobState] | None = None, limit: int = 0) -> tuple[list[JobSummary], int]: ...
    def job(self, id_or_prefix: str) -> Job: ...
    def events(self, job_id: str, after: int = 0) -> Sequence[tuple[int, Event]]: ...
    def artifact(self, job: Job, name: str) -> bytes: ...
    def request_stop(self, job_id: str, mode: str) -> Job: ...
    def resume(self, job_id: str, spec: JobSpec | None, secrets: Mapping[str, str]) -> Job: ...
    def remove(self, job_id: str, secrets: Mapping[str, str]) -> Removed:
        """As much as can be deleted in some seconds; see `remove_all`."""

    def queue(self) -> list[QueueRow]: ...
    def explain(self, job_id: str) -> Explained: ...
    def set_priority(self, job_id: str, priority: int) -> Job: ...
    def policy(self) -> ChosenPolicy: ...
    def set_policy(self, name: str, settings: Mapping[str, Any]) -> ChosenPolicy: ...
    def audit(self, after: int | None = None, limit: int = 1000) -> list[Entry]: ...
    def nodes(self) -> tuple[ClusterView, list[Incident]]: ...
    def forgive(self, node: str) -> int: ...

    def next_events(self, job_id: str, after: int, wait_s: float) -> tuple[list[tuple[int, Event]], bool]:
        """(those with a number above `after`, the job has ended and these are its last), at once or when there are some."""

    def next_logs(self, job_id: str, after: str, rank: int | None, wait_s: float, offsets: bool = False) -> Lines:
        """The lines from the offset `after` on, at once or when there are some; each with its own offset if that is asked for."""


class Local(LocalClient):
    """The verbs on this machine's jobs."""

    remote = False

    def keep_code(self, package: Package, storage: StorageSpec, secrets: Mapping[str, str]) -> bool:
        url = storage.url or self.home.store.as_uri()
        return keep_package(open_store(dataclasses.replace(storage, url=url), {**os.environ, **secrets}), package)

    def next_events(self, job_id: str, after: int, wait_s: float) -> tuple[list[tuple[int, Event]], bool]:
        limit_s = time.monotonic() + wait_s
        while True:
            job = self.job(job_id)  # first: what was told before it ended is then seen
            told = self.events(job.id, after)
            if told or job.state.terminal or time.monotonic() >= limit_s:
                return told, job.state.terminal
            time.sleep(LOOK_S)

    def next_logs(self, job_id: str, after: str, rank: int | None, wait_s: float, offsets: bool = False) -> Lines:
        limit_s = time.monotonic() + wait_s
        while True:
            page = self.logs(self.job(job_id), after, rank)
            if page.lines or page.ended or time.monotonic() >= limit_s:
                return Lines(lines=tuple(_line(line, offsets) for line in page.lines), offset=page.offset, ended=page.ended)
            time.sleep(LOOK_S)


def remove_all(verbs: Verbs, job_id: str, secrets: Mapping[str, str], tell: Callable[[int], None] = lambda objects: None) -> int:
    """Until nothing is left of what the job kept. `tell` hears how many objects are gone so far; returns how many there were."""
    deleted, done = 0, False
    while not done:
        removed = verbs.remove(job_id, secrets)
        deleted, done = deleted + removed.objects, removed.done
        tell(deleted)
    return deleted


def _line(line: LogLine, offsets: bool) -> Line:
    return Line(rank=line.rank, epoch=line.epoch, time_s=line.time_s, text=line.text, offset=line.offset if offsets else "")


def connect(home: Home, url: str = "", token: str = "") -> Verbs:
    """To the server at `url`, or on the jobs of `home`. Raises AuthenticationError where no token is to be found for a server."""
    if not url:
        return Local(home)
    from orchestrator.client.remote import Remote  # an HTTP client takes 0.1 s to import

    return Remote(home, url, token or found_token(home))


def server() -> str:
    """That of $ORCHESTRATOR_SERVER; empty: none."""
    return os.environ.get(SERVER_VARIABLE, "").strip()


def found_token(home: Home) -> str:
    """$ORCHESTRATOR_TOKEN, or what is in the file $ORCHESTRATOR_TOKEN_FILE or `api-token` of the home, which only its owner may read."""
    if token := os.environ.get(TOKEN_VARIABLE, "").strip():
        return checked_token(token, f"${TOKEN_VARIABLE}")
    path = Path(os.environ.get(TOKEN_FILE_VARIABLE) or home.api_token)
    try:
        if stat.S_IMODE(path.stat().st_mode) & 0o077:
            raise ConfigError(f"{path} can be read by others on this machine: chmod 600 {path}")
        return checked_token(path.read_text(errors="replace"), str(path))
    except FileNotFoundError as error:
        raise AuthenticationError(f"no token for the server: set ${TOKEN_VARIABLE}, or put it into {path} (mode 600).") from error


def checked_token(token: str, where: str) -> str:
    """Without space around it. Raises AuthenticationError, which does not say it, for what cannot be in the header of a request."""
    token = token.strip()
    if re.fullmatch(r"[\x21-\x7e]*", token) is None:
        raise AuthenticationError(f"{where} is no token: allowed is one word, as `orchestrator user add` prints it.")
    return token
