"""Requests that the HTTP API's own OpenAPI schema allows, and many that it does not: for the conformance test and for the campaign."""

from __future__ import annotations

import dataclasses
import random
from collections import Counter
from collections.abc import Callable
from typing import Any

import schemathesis
from hypothesis import given, seed, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import content_type_conformance, response_schema_conformance, status_code_conformance

from orchestrator.control.api.app import create_app
from orchestrator.control.client import CLUSTER, Client
from orchestrator.control.pulse import Pulse
from orchestrator.control.records.audit import AuditLog
from orchestrator.control.records.store import JobStore
from orchestrator.control.records.users import Users
from orchestrator.control.scheduler import ClusterView
from orchestrator.control.scheduler.model import CPU_UNITS, Node
from orchestrator.events import Event, EventKind
from orchestrator.job import JobState, Progress
from orchestrator.paths import Home, JobKeys
from orchestrator.spec import DataSpec, JobSpec, ModelSpec, TrainingSpec, WorkloadSpec
from orchestrator.storage import open_store

SPEC = JobSpec(
    workload=WorkloadSpec(name="tiny", entrypoint="tiny:Tiny"),
    model=ModelSpec(name="m"),
    data=DataSpec(name="d"),
    training=TrainingSpec(max_steps=10, global_batch_size=8, micro_batch_size=2),
)
CHECKS = (not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance)
JOB, ENDED, NODE, USER = "known", "over", "host", "ann"


class Service:
    def __init__(self, home: Home) -> None:
        self.home, self.store = home, JobStore(home.jobs_db)
        self.users = Users(self.store.engine)
        self.token = self.users.add("root", "ops", "admin")
        self.users.add(USER, "vision", "user")
        self.pulse = Pulse()
        self.app = create_app(home, self.store, self.pulse)
        node = Node(id="n", host=NODE, cpu_units=64 * CPU_UNITS, gpus=8)
        self.store.set_meta(CLUSTER, ClusterView(nodes=(node,)).to_dict())
        job = Client(home, self.store).submit(SPEC, {})
        progress = Progress(step=3, loss=float("nan"), max_steps=10)
        self.store.put(dataclasses.replace(job, id=JOB, state=JobState.RUNNING, placement=(("n", 1),), progress=progress))
        self.store.tell_waiting([], [Event(kind=EventKind.WARNING, job_id=JOB, time_s=1.0, message="w", fields={"loss": float("inf")})])
        self.store.put(dataclasses.replace(job, id=ENDED, state=JobState.CANCELLED))
        self.objects = open_store(job.spec.storage)
        for name in (JOB, ENDED):
            self.objects.put(f"{JobKeys(name).logs}00000001/00000000/000000000000", b"one\ntwo")

    def kept(self) -> str:
        """All that a request may change."""
        tables = self.store.all(), self.store.meta("policy"), self.users.all(), AuditLog(self.store.engine).read()
        return repr((tables, sorted(info.key for info in self.objects.list(""))))


class Asking:
    """Counts what it asks. (Schemathesis' plug-in for pytest does not know pytest 9.)"""

    def __init__(self, service: Service, examples: settings, seed: int = 0) -> None:
        """`examples`: how many cases of each operation, and how they are drawn."""
        self._service, self._examples, self._seed = service, examples, seed
        self._schema = schemathesis.openapi.from_asgi("/v1/openapi.json", service.app)
        self.asked: Counter[tuple[str, int]] = Counter()
        """How many requests, by operation and status of the answer."""

    @property
    def operations(self) -> set[str]:
        return {name for name, _ in self.asked}

    def all_are_answered(self) -> None:
        """Whatever is asked with a token is no error of the server, and is answered as the schema says."""
        token = {"Authorization": f"Bearer {self._service.token}"}

        def ask(case: Any) -> None:
            _briefly(case)
            self._service.pulse.beat(0.01)
            for change in (lambda case: None, _at_known, lambda case: _at_known(case, ENDED)):
                change(case)
                case.validate_response(self._call(case, headers=token), checks=CHECKS)

        self._ask_everything(ask, ("GET", "POST", "PUT", "PATCH", "DELETE"))

    def nothing_changes(self) -> None:
        """Whatever is asked without a token is refused, and changes nothing."""

        def ask(case: Any) -> None:
            for job in (JOB, ENDED):
                _at_known(case, job)
                case.headers.pop("Authorization", None)
                assert self._call(case).status_code in (400, 401, 422), case.as_curl_command()

        before = self._service.kept()
        self._ask_everything(ask, ("POST", "PUT", "PATCH", "DELETE"))
        assert self._service.kept() == before

    def _ask_everything(self, ask: Callable[[Any], None], methods: tuple[str, ...]) -> None:
        operations = [found.ok() for found in self._schema.get_all_operations()]
        random.Random(self._seed).shuffle(operations)  # what one of them ends or removes is not there for those after it
        for operation in operations:
            if operation.method.upper() in methods:
                seed(self._seed)(self._examples(given(case=operation.as_strategy())(ask)))()

    def _call(self, case: Any, **options: Any) -> Any:
        answer = case.call(**options)
        self.asked[f"{case.method.upper()} {case.operation.path}", answer.status_code] += 1
        return answer


def _briefly(case: Any) -> None:
    """Nobody waits a minute for news."""
    wait_s = (case.query or {}).get("wait_s")
    if isinstance(wait_s, int | float) and wait_s > 0.01:
        case.query["wait_s"] = 0.01


def _at_known(case: Any, job: str = JOB) -> None:
    for name, known in (("job", job), ("node", NODE), ("name", USER)):
        if name in (case.path_parameters or {}):
            case.path_parameters[name] = known
