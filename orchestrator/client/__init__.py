"""The verbs of the command line for programs: on this machine's jobs, or over HTTP on those of a server.

    from orchestrator.client import Client

    client = Client()                                            # $ORCHESTRATOR_HOME, beside the control plane
    client = Client("https://jobs.example.org", token="orc...")  # `orchestrator serve`, with a token of `orchestrator user add`
    job = client.submit(["workload=gpt", "training.max_steps=100"])
    for line in client.follow_logs(job.id):
        print(line.rank, line.text)
    print(client.wait(job.id).state)

Errors are those of `orchestrator.errors`, with the same words on both ways.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from orchestrator.client.connection import SERVER_VARIABLE, UserVerbs, Verbs, connect, remove_all
from orchestrator.client.lines import Line, Lines
from orchestrator.client.patience import patiently
from orchestrator.events import Event
from orchestrator.job import Job, JobState
from orchestrator.paths import Home

if TYPE_CHECKING:
    from orchestrator.control.planning.policy import ChosenPolicy
    from orchestrator.control.planning.reputation import Incident
    from orchestrator.control.reading.questions import Explained, QueueRow
    from orchestrator.control.reading.summary import JobSummary
    from orchestrator.control.records.audit import Entry
    from orchestrator.control.scheduler import ClusterView
    from orchestrator.spec import JobSpec

__all__ = ["SERVER_VARIABLE", "Client", "Line", "Lines", "UserVerbs", "Verbs", "connect"]

WAIT_S = 20.0
"""For news, in one question."""


class Client:
    """Jobs, by their ids or the beginnings of those."""

    def __init__(self, url: str = "", token: str = "", home: str = "", sleep: Callable[[float], None] = time.sleep) -> None:
        """`url`: of a server; empty: the jobs of the folder `home` (default: $ORCHESTRATOR_HOME, else ~/.orchestrator).

        `token`: default as on the command line, $ORCHESTRATOR_TOKEN or a private file. Raises AuthenticationError if there is none.
        """
        self._verbs = connect(Home.find(home), url, token)
        self._sleep = sleep

    def submit(self, what: JobSpec | Sequence[str], secrets: Mapping[str, str] | None = None) -> Job:
        """Queue a job: a spec, or overrides as on the command line. On return it is durable.

        `secrets`: variables of its processes' environment, which are not kept with its settings. Those that `environment.secrets` names
        and that are not among them come from this process's environment. Raises ConfigError for one that is nowhere.
        """
        if isinstance(what, Sequence):
            from orchestrator.config import load_job_spec

            what = load_job_spec(what)
        handed = _handed_over(what, secrets)
        return self._verbs.submit(self._with_package(what, handed), handed)

    def _with_package(self, spec: JobSpec, secrets: Mapping[str, str]) -> JobSpec:
        """A workload of one's own goes with the files of its folder."""
        from orchestrator.code.submission import packaged

        return packaged(spec, lambda package: self._verbs.keep_code(package, spec.storage, secrets))

    def job(self, job: str) -> Job:
        return self._verbs.job(job)

    def jobs(self, states: Collection[JobState] | None = None, limit: int = 0) -> list[JobSummary]:
        """In short, in the order of their submission: of more than `limit` (0: all) those that have not ended, then the newest."""
        return self._verbs.summaries(states, limit)[0]

    def cancel(self, job: str, now: bool = False) -> Job:
        """Ask that it ends: after a checkpoint or, with `now`, at once."""
        return self._verbs.request_stop(job, "now" if now else "drain")

    def resume(self, job: str, spec: JobSpec | None = None, secrets: Mapping[str, str] | None = None) -> Job:
        """Queue a job that has ended once more. `secrets`: as for `submit`; those of its submission went with its end."""
        return self._verbs.resume(job, spec, _handed_over(spec or self.job(job).spec, secrets))

    def remove(self, job: str, secrets: Mapping[str, str] | None = None) -> int:
        """Delete what a job that has ended keeps in its object store (checkpoints, output, artifacts), and its MLflow run.

        Returns how many objects that were. `secrets`: keys for the store, if the control plane has none of its own.
        """
        return remove_all(self._verbs, job, secrets or {})

    @property
    def users(self) -> UserVerbs:
        """For admins: `all()`, `add(name, tenant, role)` and `renew(name)`, which return the token, `revoke(name)`."""
        return self._verbs.users

    def events(self, job: str, after: int = 0) -> list[tuple[int, Event]]:
        """(number, event) of those with a number above `after`."""
        return list(self._verbs.events(self._verbs.job(job).id, after))

    def logs(self, job: str, rank: int | None = None, after: str = "") -> Lines:
        """The next lines that there are, about a megabyte of them."""
        return self._verbs.next_logs(job, after, rank, 0.0)

    def artifact(self, job: str, name: str) -> bytes:
        """A file that the job has left: `evaluation.json`, `history.json` ..."""
        return self._verbs.artifact(self._verbs.job(job), name)

    def queue(self) -> list[QueueRow]:
        """The jobs that wait, who is next first: why, and when they start."""
        return self._verbs.queue()

    def explain(self, job: str) -> Explained:
        """Why a job waits, who holds what it needs, and what would let it start now."""
        return self._verbs.explain(job)

    def set_priority(self, job: str, priority: int) -> Job:
        """Of a job that waits or runs: a higher class comes before all lower ones."""
        return self._verbs.set_priority(job, priority)

    def policy(self) -> ChosenPolicy:
        """By which the control plane decides who runs."""
        return self._verbs.policy()

    def set_policy(self, name: str, settings: Mapping[str, Any]) -> ChosenPolicy:
        """For admins. `settings`: as in `conf/scheduler`."""
        return self._verbs.set_policy(name, settings)

    def audit(self, after: int | None = None, limit: int = 1000) -> list[Entry]:
        """Who changed or tried to change what: the first entries with a number above `after`; None: the newest. For admins."""
        return self._verbs.audit(after, limit)

    def nodes(self) -> tuple[ClusterView, list[Incident]]:
        """(the cluster's nodes, what has spoken against their machines of late)."""
        return self._verbs.nodes()

    def forgive(self, node: str) -> int:
        return self._verbs.forgive(node)

    def wait(self, job: str, timeout_s: float | None = None) -> Job:
        """Until it has ended. Raises TimeoutError."""
        for _, _ in self.follow_events(job, timeout_s=timeout_s):
            pass
        return self.job(job)

    def follow_events(self, job: str, after: int = 0, timeout_s: float | None = None) -> Iterator[tuple[int, Event]]:
        """(number, event) as they happen, each once, until the job has ended; over any number of lost connections."""
        limit_s = None if timeout_s is None else time.monotonic() + timeout_s
        ended = False
        while not ended:
            told, ended = patiently(partial(self._next_events, job, after, limit_s), sleep=self._sleep)
            yield from told
            after = told[-1][0] if told else after

    def follow_logs(self, job: str, rank: int | None = None, after: str = "") -> Iterator[Line]:
        """The lines of all ranks or of one, each once, until the job has ended; over any number of lost connections.

        `after`: the `offset` of a page of `logs`.
        """
        ended = False
        while not ended:
            page = patiently(partial(self._verbs.next_logs, job, after, rank, WAIT_S), sleep=self._sleep)
            yield from page.lines
            after, ended = page.offset, page.ended

    def _next_events(self, job: str, after: int, limit_s: float | None) -> tuple[list[tuple[int, Event]], bool]:
        return self._verbs.next_events(job, after, self._left(limit_s, job))

    def _left(self, limit_s: float | None, job: str) -> float:
        if limit_s is None:
            return WAIT_S
        if time.monotonic() >= limit_s:
            raise TimeoutError(f"{job} has not ended in time")
        return min(WAIT_S, limit_s - time.monotonic())


def _handed_over(spec: JobSpec, secrets: Mapping[str, str] | None) -> dict[str, str]:
    from orchestrator.control.submission import named_secrets

    return {**named_secrets(spec, os.environ), **(secrets or {})}
