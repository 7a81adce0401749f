"""The HTTP API is asked everything that its own OpenAPI schema allows, and much that it does not: no request is an error of the server, and
none changes anything without a token."""

from __future__ import annotations

import dataclasses

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
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
FEW = settings(
    max_examples=12, deadline=None, derandomize=True, phases=[Phase.explicit, Phase.generate], database=None,
    suppress_health_check=list(HealthCheck),
)  # fmt: skip


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


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    made = Service(Home(tmp_path_factory.mktemp("home")))
    yield made
    made.store.close()


@pytest.fixture(scope="module")
def schema(service):
    return schemathesis.openapi.from_asgi("/v1/openapi.json", service.app)


def ask_everything(schema, ask, methods=("GET", "POST", "PUT", "PATCH", "DELETE")) -> int:
    """`ask` with many cases of each operation. Returns of how many operations. (Its plug-in for pytest does not know pytest 9.)"""
    operations = [found.ok() for found in schema.get_all_operations()]
    chosen = [operation for operation in operations if operation.method.upper() in methods]
    for operation in chosen:
        FEW(given(case=operation.as_strategy())(ask))()
    return len(chosen)


def briefly(case) -> None:
    """Nobody waits a minute for news."""
    wait_s = (case.query or {}).get("wait_s")
    if isinstance(wait_s, int | float) and wait_s > 0.01:
        case.query["wait_s"] = 0.01


def at_known(case, job: str = JOB) -> None:
    for name, known in (("job", job), ("node", NODE), ("name", USER)):
        if name in (case.path_parameters or {}):
            case.path_parameters[name] = known


def test_no_request_is_an_error_of_the_server(schema, service):
    def ask(case) -> None:
        briefly(case)
        service.pulse.beat(0.01)
        for change in (lambda case: None, at_known, lambda case: at_known(case, ENDED)):
            change(case)
            response = case.call(headers={"Authorization": f"Bearer {service.token}"})
            case.validate_response(response, checks=CHECKS)

    assert ask_everything(schema, ask) >= 31


def test_nothing_changes_without_a_token(schema, service):
    def ask(case) -> None:
        for job in (JOB, ENDED):
            at_known(case, job)
            case.headers.pop("Authorization", None)
            assert case.call().status_code in (400, 401, 422)

    before = service.kept()
    assert ask_everything(schema, ask, ("POST", "PUT", "PATCH", "DELETE")) >= 11
    assert service.kept() == before
