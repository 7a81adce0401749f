"""The verbs over HTTP."""

from __future__ import annotations

import dataclasses
import inspect
import os
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any
from urllib.parse import quote

import httpx2

from orchestrator import errors
from orchestrator.client.connection import checked_token
from orchestrator.client.lines import Line, Lines
from orchestrator.code.package import Package, archive_of, keep_package
from orchestrator.control.planning.policy import ChosenPolicy
from orchestrator.control.planning.reputation import Incident
from orchestrator.control.reading.questions import Explained, QueueRow
from orchestrator.control.reading.summary import JobSummary
from orchestrator.control.records.audit import Entry
from orchestrator.control.records.users import Role, User
from orchestrator.control.removal import Removed
from orchestrator.control.scheduler import ClusterView
from orchestrator.control.submission import new_id
from orchestrator.errors import ClusterError, ConfigError, OrchestratorError
from orchestrator.events import Event, EventKind, IncidentKind
from orchestrator.job import Job, JobState, job_from_dict, progress_from_dict
from orchestrator.paths import Home
from orchestrator.spec import JobSpec, StorageSpec, to_dict
from orchestrator.storage import open_store

ANSWER_S = 30.0
"""That a server may take, on top of what it was asked to wait."""
REMOVAL_S = 120.0
"""That it may take more where MLflow has to be asked."""
PAUSES_S = (0.2, 1.0)
"""Between the tries of a submission."""
_PAGE = 10_000
_ERRORS = {name: cls for name, cls in inspect.getmembers(errors, inspect.isclass) if issubclass(cls, OrchestratorError)}
_SUMMARY = {field.name for field in dataclasses.fields(JobSummary)}


class Remote:
    """Of one server, for the user of one token. Errors are those of the server, ClusterError if it cannot be reached."""

    remote = True

    def __init__(self, home: Home, url: str, token: str, transport: httpx2.BaseTransport | None = None) -> None:
        """`home`: only for hints to the user. `transport`: for tests."""
        if not url.startswith(("http://", "https://")):
            raise ConfigError(f"{url} is no server: allowed is http://HOST:PORT or https://HOST.")
        self.home = home
        self.url = url.rstrip("/")
        token = checked_token(token, "what is given as the token")
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        try:
            self._http = httpx2.Client(base_url=self.url, headers=headers, timeout=ANSWER_S, transport=transport)
        except httpx2.InvalidURL as error:
            raise ConfigError(f"{url} is no server: allowed is http://HOST:PORT or https://HOST ({error}).") from error

    def submit(self, spec: JobSpec, secrets: Mapping[str, str]) -> Job:
        """Again with the same id after a lost connection, so that it makes one job."""
        asked = {"spec": to_dict(spec), "secrets": dict(secrets), "id": new_id(spec)}
        for pause_s in PAUSES_S:
            try:
                return job_from_dict(self._ask("POST", "/v1/jobs", asked))
            except ClusterError:
                time.sleep(pause_s)
        return job_from_dict(self._ask("POST", "/v1/jobs", asked))

    def keep_code(self, package: Package, storage: StorageSpec, secrets: Mapping[str, str]) -> bool:
        """In a store that is named, from here; else the server keeps it in its own."""
        if storage.url:
            return keep_package(open_store(storage, {**os.environ, **secrets}), package)
        path = f"/v1/code/{package.content_hash}"
        if self._ask("GET", path)["kept"]:
            return False
        return bool(self._ask("PUT", path, archive_of(package))["put"])

    def jobs(self) -> list[Job]:
        return [job_from_dict(values) for values in self._pages({"view": "full"})]

    def summaries(self, states: Collection[JobState] | None = None, limit: int = 0) -> tuple[list[JobSummary], int]:
        """As `control.client.Client.summaries`: of more than `limit` those that have not ended, then the newest."""
        only = {"state": next(iter(states)).value} if states is not None and len(states) == 1 else {}
        found = [_summary(values) for values in self._pages(only)]
        found = [job for job in found if states is None or job.state in states]
        first = sorted(found, key=lambda job: (job.state.terminal, -job.submitted_s))[: limit or None]
        chosen = {job.id for job in first}
        return [job for job in found if job.id in chosen], len(found)

    def job(self, id_or_prefix: str) -> Job:
        return job_from_dict(self._ask("GET", _job(id_or_prefix)))

    def events(self, job_id: str, after: int = 0) -> list[tuple[int, Event]]:
        found: list[tuple[int, Event]] = []
        while told := self.next_events(job_id, found[-1][0] if found else after, 0)[0]:
            found += told
        return found

    def artifact(self, job: Job, name: str) -> bytes:
        return self._response("GET", f"{_job(job.id)}/artifacts/{quote(name, safe='')}").content

    def request_stop(self, job_id: str, mode: str) -> Job:
        return job_from_dict(self._ask("POST", f"{_job(job_id)}/stop", {"mode": mode}))

    def resume(self, job_id: str, spec: JobSpec | None, secrets: Mapping[str, str]) -> Job:
        asked = {"spec": None if spec is None else to_dict(spec), "secrets": dict(secrets)}
        return job_from_dict(self._ask("POST", f"{_job(job_id)}/resume", asked))

    def remove(self, job_id: str, secrets: Mapping[str, str]) -> Removed:
        told = self._ask("POST", f"{_job(job_id)}/remove", {"secrets": dict(secrets)}, wait_s=REMOVAL_S)
        return Removed(objects=told["objects"], done=told["done"])

    @property
    def users(self) -> RemoteUsers:
        return RemoteUsers(self._ask)

    def queue(self) -> list[QueueRow]:
        return [QueueRow(**row) for row in self._ask("GET", "/v1/queue")["jobs"]]

    def explain(self, job_id: str) -> Explained:
        values = self._ask("GET", f"{_job(job_id)}/explanation")
        return Explained(**{**values, "holders": tuple(values["holders"])})

    def set_priority(self, job_id: str, priority: int) -> Job:
        return job_from_dict(self._ask("POST", f"{_job(job_id)}/priority", {"priority": priority}))

    def policy(self) -> ChosenPolicy:
        return ChosenPolicy(**self._ask("GET", "/v1/policy"))

    def set_policy(self, name: str, settings: Mapping[str, Any]) -> ChosenPolicy:
        return ChosenPolicy(**self._ask("PUT", "/v1/policy", {"name": name, "settings": dict(settings)}))

    def audit(self, after: int | None = None, limit: int = 1000) -> list[Entry]:
        asked = {"limit": limit} if after is None else {"after": after, "limit": limit}
        return [Entry(**row) for row in self._ask("GET", "/v1/audit", asked=asked)["entries"]]

    def nodes(self) -> tuple[ClusterView, list[Incident]]:
        values = self._ask("GET", "/v1/nodes")
        return ClusterView.from_dict(values), [Incident(**{**row, "kind": IncidentKind[row["kind"]]}) for row in values["incidents"]]

    def forgive(self, node: str) -> int:
        return int(self._ask("POST", f"/v1/nodes/{quote(node, safe='')}/forgive")["incidents"])

    def next_events(self, job_id: str, after: int, wait_s: float) -> tuple[list[tuple[int, Event]], bool]:
        page = self._ask("GET", f"{_job(job_id)}/events", asked={"after": after, "wait_s": wait_s}, wait_s=wait_s)
        return [(row.pop("seq"), Event(**{**row, "kind": EventKind(row["kind"])})) for row in page["events"]], page["ended"]

    def next_logs(self, job_id: str, after: str, rank: int | None, wait_s: float, offsets: bool = False) -> Lines:
        asked = {"after": after, "wait_s": wait_s, "offsets": offsets, **({} if rank is None else {"rank": rank})}
        page = self._ask("GET", f"{_job(job_id)}/logs", asked=asked, wait_s=wait_s)
        return Lines(lines=tuple(Line(**row) for row in page["lines"]), offset=page["next"], ended=page["ended"])

    def _pages(self, asked: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        after = ""
        while True:
            page = self._ask("GET", "/v1/jobs", asked={**asked, "limit": _PAGE, "after": after})
            yield from page["jobs"]
            after = page["next"]
            if not after:
                return

    def _ask(self, method: str, path: str, body: Any = None, asked: Mapping[str, Any] | None = None, wait_s: float = 0) -> Any:
        """`body`: bytes, or what is sent as JSON."""
        response = self._response(method, path, body, asked, wait_s)
        try:
            return response.json()
        except ValueError as error:
            raise ClusterError(f"what answers at {self.url} is no orchestrator: {response.text[:200]!r}") from error

    def _response(
        self, method: str, path: str, body: Any = None, asked: Mapping[str, Any] | None = None, wait_s: float = 0
    ) -> httpx2.Response:
        sent = {"content": body} if isinstance(body, bytes) else {"json": body}
        try:
            response = self._http.request(method, path, params=asked, timeout=ANSWER_S + wait_s, **sent)
        except httpx2.TransportError as error:
            raise ClusterError(f"the server {self.url} does not answer: {error or type(error).__name__}") from error
        if response.is_success:
            return response
        raise self._error(response)

    def _error(self, response: httpx2.Response) -> OrchestratorError:
        try:
            told = response.json()
            return _ERRORS.get(told["error"], OrchestratorError)(told["message"])
        except (ValueError, TypeError, KeyError):
            return ClusterError(f"{self.url} answers {response.status_code} {response.reason_phrase}: {response.text[:200]!r}")


class RemoteUsers:
    """Tokens are in the answers, never in an address."""

    def __init__(self, ask: Callable[..., Any]) -> None:
        self._ask = ask

    def all(self) -> list[User]:
        return [User(**{**row, "role": Role(row["role"])}) for row in self._ask("GET", "/v1/users")["users"]]

    def add(self, name: str, tenant: str = "", role: str = Role.USER.value) -> str:
        return str(self._ask("POST", "/v1/users", {"name": name, "tenant": tenant, "role": role})["token"])

    def renew(self, name: str) -> str:
        return str(self._ask("POST", f"/v1/users/{quote(name, safe='')}/renew")["token"])

    def revoke(self, name: str) -> None:
        self._ask("POST", f"/v1/users/{quote(name, safe='')}/revoke")


def _job(name: str) -> str:
    return f"/v1/jobs/{quote(name, safe='')}"


def _summary(values: Mapping[str, Any]) -> JobSummary:
    known = {key: value for key, value in values.items() if key in _SUMMARY}
    return JobSummary(**{**known, "state": JobState(values["state"]), "progress": progress_from_dict(values["progress"])})
