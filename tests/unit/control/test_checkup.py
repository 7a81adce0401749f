"""Each check with something broken, and with nothing broken."""

from __future__ import annotations

import dataclasses
import json
import socket
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import psutil
import pytest

from orchestrator.cli import main
from orchestrator.control.checkup import CHECKS, Finding, Level, Subject, checked, cluster, gpus, machine, objects, ports
from orchestrator.control.checkup.finding import ok
from orchestrator.control.checkup.server import SERVER_VARIABLE
from orchestrator.control.checkup.versions import compare
from orchestrator.control.client import CLUSTER
from orchestrator.control.environment import remote_environment
from orchestrator.control.lock import ControllerLock, Holder
from orchestrator.control.records.lease import ControllerLease
from orchestrator.control.records.store import JobStore
from orchestrator.control.scheduler import ClusterView, Standing
from orchestrator.control.scheduler.model import CPU_UNITS, Node
from orchestrator.errors import StorageDenied
from orchestrator.job import Job
from orchestrator.paths import Home, write_private
from orchestrator.spec import DataSpec, JobSpec, ModelSpec, StorageSpec, TrackingSpec, TrainingSpec, WorkloadSpec
from orchestrator.storage import MemoryStore

SPEC = JobSpec(
    workload=WorkloadSpec(name="tiny", entrypoint="tiny:Tiny"),
    model=ModelSpec(name="m"),
    data=DataSpec(name="d"),
    training=TrainingSpec(max_steps=10, global_batch_size=8, micro_batch_size=2),
)


@pytest.fixture
def subject(tmp_path: Path) -> Subject:
    (tmp_path / "devices").mkdir()
    return Subject(home=Home(tmp_path / "home"), environ={}, user_home=tmp_path, devices=tmp_path / "devices")


def only(findings: Iterator[Finding] | Any, level: Level = Level.PROBLEM) -> Finding:
    """The one that is not ok: of this level, and with something to type."""
    bad = [finding for finding in findings if finding.level is not Level.OK]
    assert len(bad) == 1 and bad[0].level is level and bad[0].fix, bad
    return bad[0]


def is_fine(findings: Any) -> bool:
    found = list(findings)
    assert found and not any(finding.fix for finding in found if finding.level is Level.OK)
    return all(finding.level is Level.OK for finding in found)


def running(home: Home, address: str = "127.0.0.1:1", ready: bool = True) -> None:
    """This process as the controller."""
    ControllerLock(home).publish(address, ready)


@contextmanager
def serving(handler: type[BaseHTTPRequestHandler]) -> Iterator[str]:
    found = HTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=found.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{found.server_port}"
    finally:
        found.shutdown()
        thread.join()
        found.server_close()


@contextmanager
def server(status: int, body: bytes = b"OK", headers: dict[str, str] | None = None) -> Iterator[str]:
    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response_only(status)
            for name, value in (headers or {}).items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def do_HEAD(self) -> None:
            self.send_response_only(status)
            for name, value in (headers or {}).items():
                self.send_header(name, value)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            return

    with serving(Answer) as url:
        yield url


def test_every_check_finds_something_on_a_machine_where_nothing_was_ever_started(subject: Subject) -> None:
    for name, check in CHECKS.items():
        found = list(check(subject))
        assert found, name
        assert all(bool(finding.fix) == (finding.level is not Level.OK) for finding in found), found
        of_this_machine = ("disk", "shared memory", "limits", "network", "ports")
        assert name in of_this_machine or is_fine(found), found


class OfAnother(BaseHTTPRequestHandler):
    """Not HTTP."""

    def handle(self) -> None:
        self.wfile.write(b"SSH-2.0-OpenSSH_9.2\r\n")


def test_a_bad_port_and_the_port_of_another_program_are_findings(subject: Subject) -> None:
    with serving(OfAnother) as other:
        for url in ("http://127.0.0.1:port", "http://[::1", other):
            broken = dataclasses.replace(subject, environ={SERVER_VARIABLE: url}, tracking=TrackingSpec(uri=url))
            assert "does not answer" in next(iter(CHECKS["server"](broken))).message
            assert only(checked("tracking", broken)).message
            assert objects.clock_skew_s(StorageSpec(url="s3://bucket/x", endpoint_url=url)) is None


def test_an_error_of_one_check_is_a_finding_and_the_others_are_asked(
    subject: Subject, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ORCHESTRATOR_HOME", str(subject.home.root))
    monkeypatch.setenv("ORCHESTRATOR_DATABASE", "postgresql://me:hunter2@h:port/x")

    def broken(subject: Subject) -> Iterator[Finding]:
        yield ok("this is well")
        raise RuntimeError("nobody thought of it")

    monkeypatch.setitem(CHECKS, "network", broken)
    assert main(["doctor", "--only", "network,control plane,limits", "--json"]) == 1
    rows = json.loads(capsys.readouterr().out)
    assert [(row["check"], row["level"]) for row in rows[:3]] == [("network", "ok"), ("network", "problem"), ("control plane", "problem")]
    assert rows[1]["message"] == "this cannot be checked: RuntimeError: nobody thought of it" and rows[1]["fix"]
    assert "is no database" in rows[2]["message"] and "hunter2" not in str(rows)
    assert rows[3]["check"] == "limits"


# versions


def versions(**installed: str) -> Iterator[Finding]:
    needed = ["ray>=2.60,<3", "torch>=2.6,<3", "torchao>=0.18; extra == 'float8'"]
    return compare(">=3.11", needed, "3.11.2", {"ray": "2.60.0", "torch": "2.13.0+cpu", **installed}.get)


def test_versions() -> None:
    assert is_fine(versions())
    assert "ray 3.0.1 is installed, but <3,>=2.60 is needed" in only(versions(ray="3.0.1")).message
    assert only(compare(">=3.11", ["ray>=2.60"], "3.11.2", lambda name: None)).fix == "pip install 'ray>=2.60'"
    assert "Python 3.9.1 runs, but >=3.11 is needed" in only(compare(">=3.11", [], "3.9.1", lambda name: "1")).message


# secrets


def test_secrets_that_others_can_read(subject: Subject) -> None:
    check = CHECKS["secrets"]
    write_private(subject.home.token, "t")
    assert is_fine(check(subject))
    subject.home.token.chmod(0o644)
    assert only(check(subject)).fix == f"chmod 600 {subject.home.token}"
    subject.home.token.chmod(0o600)
    write_private(subject.home.secrets("job"), "{}")
    subject.home.secrets("job").chmod(0o640)
    assert "mode 0640" in only(check(subject)).message
    subject.home.secrets("job").chmod(0o600)
    subject.home.token.write_text("")
    assert "is empty" in only(check(subject)).message


def test_ray_without_tokens(subject: Subject) -> None:
    without = dataclasses.replace(subject, environ={"RAY_AUTH_MODE": "disabled"})
    assert "RAY_AUTH_MODE=disabled" in only(CHECKS["secrets"](without), Level.WARNING).message


# the machine


def test_a_full_disk(subject: Subject) -> None:
    def free(gigabytes: float) -> Any:
        return lambda path: int(1e9 * gigabytes) if path == subject.home.root else 10**12

    subject.home.root.mkdir()
    assert is_fine(machine.check_disk(subject, free(100)))
    assert "5.0 GB free" in only(machine.check_disk(subject, free(5)), Level.WARNING).message
    assert "checkpoint gc" in only(machine.check_disk(subject, free(0.5))).fix


def test_little_shared_memory(subject: Subject, tmp_path: Path) -> None:
    assert is_fine(machine.check_shared_memory(subject, tmp_path, lambda path: 10**13))
    assert "0.06 GB" in only(machine.check_shared_memory(subject, tmp_path, lambda path: 64_000_000), Level.WARNING).message
    assert "is not there" in only(machine.check_shared_memory(subject, tmp_path / "none"), Level.WARNING).message


def test_a_network_with_a_fault(subject: Subject, tmp_path: Path) -> None:
    def nowhere(name: str) -> str:
        raise OSError("Name or service not known")

    ports = tmp_path / "ports"
    ports.write_text("32768\t60999\n")
    assert is_fine(machine.check_network(subject, lambda name: "10.0.0.1", ports))
    assert "/etc/hosts" in only(machine.check_network(subject, nowhere, ports), Level.WARNING).fix
    ports.write_text("32768\t33000\n")
    assert "only 232 ports" in only(machine.check_network(subject, lambda name: "10.0.0.1", ports), Level.WARNING).message


def test_a_port_that_another_process_holds(subject: Subject) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, serving(OfAnother) as other:
        port, me = taken.getsockname()[1], psutil.Process()
        found = only(ports.check_ports(subject, {"serve": port}), Level.WARNING)
        assert found.message == f"{port}, the port of `orchestrator serve`, is held by {me.name()} (pid {me.pid})"
        assert found.fix == "orchestrator serve --port ANOTHER"
        assert len([one for one in ports.check_ports(subject, {"serve": port, "dashboard": int(other.rpartition(":")[2])}) if one.fix]) == 2
        running(subject.home)
        assert is_fine(ports.check_ports(subject, {"serve": port}))
    assert is_fine(ports.check_ports(subject, {"serve": port}))


def test_few_open_files(subject: Subject) -> None:
    assert is_fine(machine.check_limits(subject, 65536)) and is_fine(machine.check_limits(subject, -1))
    assert only(machine.check_limits(subject, 256), Level.WARNING).fix == "ulimit -n 65536"


# the object store


class NoConditions(MemoryStore):
    def create(self, key: str, data: bytes) -> None:
        self.put(key, data)


class ListsLate(MemoryStore):
    def list(self, prefix: str) -> Iterator:
        return iter(())


class Denies(MemoryStore):
    def list_unfinished(self, prefix: str) -> Iterator:
        raise StorageDenied("no")

    def abort_unfinished(self, prefix: str, older_than_s: float, now: Any = None) -> list:
        return []


@pytest.mark.parametrize(
    ("store", "said", "level"),
    [
        (NoConditions(), "ignores If-None-Match", Level.PROBLEM),
        (ListsLate(), "lists other objects than there are", Level.PROBLEM),
        (Denies(), "unfinished uploads may not be listed", Level.WARNING),
    ],
)
def test_a_store_that_lacks_what_jobs_rely_on(store: MemoryStore, said: str, level: Level, subject: Subject) -> None:
    assert said in only(objects.check_objects(subject, store), level).message


def test_a_folder_that_cannot_be_written(subject: Subject, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    broken = dataclasses.replace(subject, storage=StorageSpec(url=f"file://{tmp_path}/file/store"))
    assert only(CHECKS["object store"](broken)).message
    assert is_fine(CHECKS["object store"](subject))


def test_a_bucket_that_is_not_reachable(subject: Subject) -> None:
    storage = StorageSpec(url="s3://bucket/x", endpoint_url="http://127.0.0.1:9", max_attempts=1, connect_timeout_s=1.0)
    keys = {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b"}
    found = only(CHECKS["object store"](dataclasses.replace(subject, storage=storage, environ=keys)))
    assert found.fix.startswith("curl -I http://127.0.0.1:9")


@pytest.mark.parametrize(("date", "skew"), [("Thu, 01 Jan 1970 00:01:40 GMT", 1e9), ("not a date", None)])
def test_the_stores_clock_is_read_from_a_refusal(date: str, skew: float | None) -> None:
    with server(403, headers={"Date": date}) as url:
        found = objects.clock_skew_s(StorageSpec(url="s3://bucket/x", endpoint_url=url))
    assert found is None if skew is None else found is not None and found > skew


@pytest.mark.parametrize(("skew_s", "level"), [(3.0, Level.OK), (-60.0, Level.WARNING), (900.0, Level.PROBLEM)])
def test_a_clock_that_is_wrong(skew_s: float, level: Level, subject: Subject) -> None:
    found = list(objects.check_objects(subject, MemoryStore(), skew_s))[-1]
    assert found.level is level and ("behind" if skew_s < 0 else "ahead of") in found.message


# tracking


@pytest.mark.parametrize(
    ("status", "body", "level", "fix"),
    [
        (200, b"OK", Level.OK, ""),
        (200, b"<html>", Level.WARNING, "mlflow server"),
        (404, b"", Level.PROBLEM, "mlflow server"),
        (401, b"", Level.PROBLEM, "MLFLOW_TRACKING_USERNAME"),
    ],
)
def test_a_tracking_server(status: int, body: bytes, level: Level, fix: str, subject: Subject) -> None:
    with server(status, body) as url:
        (found,) = CHECKS["tracking"](dataclasses.replace(subject, tracking=TrackingSpec(uri=url)))
    assert found.level is level and fix in found.fix


def test_a_tracking_server_that_is_not_there(subject: Subject) -> None:
    assert "does not answer" in only(CHECKS["tracking"](dataclasses.replace(subject, tracking=TrackingSpec(uri="http://127.0.0.1:9")))).message


def test_a_damaged_tracking_database(subject: Subject) -> None:
    file = subject.home.mlflow / "mlflow.db"
    file.parent.mkdir(parents=True)
    with sqlite3.connect(file) as connection:
        connection.execute("create table t (x)")
    assert is_fine(CHECKS["tracking"](subject))
    file.write_bytes(b"this is no database" * 100)
    assert str(file) in only(CHECKS["tracking"](subject)).fix


# the server that commands ask


@pytest.mark.parametrize(
    ("status", "level", "said"),
    [(200, Level.OK, "answers"), (503, Level.PROBLEM, "hangs"), (404, Level.PROBLEM, "is it `orchestrator serve`")],
)
def test_a_server(status: int, level: Level, said: str, subject: Subject) -> None:
    with server(status) as url:
        (found,) = CHECKS["server"](dataclasses.replace(subject, environ={SERVER_VARIABLE: url}))
    assert found.level is level and said in found.message


def test_a_server_that_is_not_there_or_is_asked_in_clear(subject: Subject) -> None:
    assert "does not answer" in only(CHECKS["server"](dataclasses.replace(subject, environ={SERVER_VARIABLE: "http://127.0.0.1:9"}))).message
    found = list(CHECKS["server"](dataclasses.replace(subject, environ={SERVER_VARIABLE: "http://jobs.invalid"})))
    assert [finding.level for finding in found] == [Level.PROBLEM, Level.WARNING] and "without TLS" in found[1].message


# control plane and cluster


def queued(home: Home) -> None:
    JobStore(home.jobs_db).put(Job(id="waits", spec=SPEC))


def test_jobs_that_wait_for_a_controller_that_died(subject: Subject) -> None:
    check = CHECKS["control plane"]
    queued(subject.home)
    assert "1 jobs wait and no controller runs" in only(check(subject)).message
    ControllerLock(subject.home)
    subject.home.controller_lock.write_text(json.dumps(dataclasses.asdict(Holder(pid=1 << 22, created=1.0, address="a:1"))))
    found = only(check(subject))
    assert f"since the one with pid {1 << 22} died" in found.message and found.fix.startswith("orchestrator up")
    running(subject.home)
    assert is_fine(check(subject))


def test_a_controller_that_is_not_ready(subject: Subject) -> None:
    subject.home.root.mkdir()
    running(subject.home, ready=False)
    assert "not ready" in only(CHECKS["control plane"](subject), Level.WARNING).message


def test_jobs_that_a_controller_on_another_machine_serves(subject: Subject) -> None:
    queued(subject.home)
    lease = ControllerLease(JobStore(subject.home.jobs_db).engine, 3000.0, me={"host": "other", "machine": "m", "pid": 7, "created": 1.0})
    lease.acquire()
    (found,) = CHECKS["control plane"](subject)
    assert found.level is Level.OK and "the controller on other (pid 7) serves these jobs; 1 have not ended" in found.message
    lease.release()
    assert "no controller runs" in only(CHECKS["control plane"](subject)).message


def test_a_store_of_another_program(subject: Subject) -> None:
    JobStore(subject.home.jobs_db).set_meta("schema_version", 999)
    assert "schema version 999" in only(CHECKS["control plane"](subject)).message


def test_a_ray_head_that_does_not_answer(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in remote_environment(subject.home, ""):
        monkeypatch.setenv(name, "")  # put back afterwards
    subject.home.root.mkdir()
    running(subject.home, "127.0.0.1:9")
    found = only(cluster.check_cluster(subject, limit_s=0.1))
    assert "nothing listens at 127.0.0.1:9" in found.message and found.fix.startswith("orchestrator down")


def test_a_machine_that_failed_of_late(subject: Subject) -> None:
    node = Node(id="n1", host="bad", cpu_units=4 * CPU_UNITS, gpus=2, standing=Standing.EXCLUDED)
    JobStore(subject.home.jobs_db).set_meta(CLUSTER, ClusterView(nodes=(node,)).to_dict())
    found = only(cluster._nodes(subject.home, "a:1"), Level.WARNING)
    assert "node bad is excluded" in found.message and "nodes forgive bad" in found.fix


# GPUs

FOUND = {"torch": "2.13", "cuda": "12.9", "count": 2, "names": ["H200", "H200"], "nccl": "2.27", "error": ""}


@pytest.mark.parametrize(
    ("changes", "said", "level"),
    [
        ({"cuda": None, "count": 0}, "built without CUDA", Level.PROBLEM),
        ({"count": 1}, "torch sees 1 of 2 GPUs", Level.WARNING),
        ({"count": 0}, "torch sees 0 of 2 GPUs", Level.PROBLEM),
        ({"error": "NCCL error"}, "NCCL error", Level.PROBLEM),
    ],
)
def test_gpus_with_a_fault(changes: dict[str, Any], said: str, level: Level, subject: Subject) -> None:
    for number in (0, 1):
        (subject.devices / f"nvidia{number}").touch()
    (subject.devices / "nvidiactl").touch()
    assert is_fine(gpus.check_gpus(subject, lambda: FOUND))
    assert said in only(gpus.check_gpus(subject, lambda: {**FOUND, **changes}), level).message


def test_torch_that_does_not_answer(subject: Subject) -> None:
    (subject.devices / "nvidia0").touch()

    def broken() -> dict[str, Any]:
        raise ValueError("no JSON")

    assert "no JSON" in only(gpus.check_gpus(subject, broken)).message
