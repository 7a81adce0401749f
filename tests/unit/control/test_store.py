"""What only the embedded database promises; what every job store does is in tests/conformance/test_job_store.py."""

from __future__ import annotations

import dataclasses
import multiprocessing
import sqlite3

import pytest
from patience import LIMIT_S

from orchestrator.control.planning.reputation import Incident
from orchestrator.control.records.database import DATABASE_VARIABLE, as_argument, exists, place_of
from orchestrator.control.records.store import JobStore
from orchestrator.errors import ConfigError, StaleWrite
from orchestrator.events import Event, EventKind, IncidentKind
from orchestrator.job import Job
from orchestrator.paths import Home
from orchestrator.spec import DataSpec, JobSpec, ModelSpec, TrainingSpec, WorkloadSpec

SPEC = JobSpec(
    workload=WorkloadSpec(name="tiny", entrypoint="tiny:Tiny"),
    model=ModelSpec(name="m"),
    data=DataSpec(name="d", options={"a": [1, {"b": None}]}),
    training=TrainingSpec(max_steps=10, global_batch_size=8, micro_batch_size=2),
)


def event(message: str, kind: EventKind = EventKind.WARNING) -> Event:
    return Event(kind=kind, job_id="a", time_s=1.5, message=message, fields={"n": 1})


@pytest.fixture
def store(tmp_path):
    store = JobStore(tmp_path / "home" / "jobs.db")
    yield store
    store.close()


def test_writes_survive_the_process_and_a_second_store_sees_them(store, tmp_path):
    store.put(Job(id="a", spec=SPEC))
    assert JobStore(tmp_path / "home" / "jobs.db").get("a").spec == SPEC


def against(node, kind="HANG", time_s=5.0, **more):
    fields = {"incident": kind, "node": node, **more}
    return Event(kind=EventKind.HANG, job_id="a", time_s=time_s, message="rank 1 does not move\nits stack", fields=fields)


def test_events_that_speak_against_a_machine_are_kept_over_all_jobs_until_it_is_forgiven(store, tmp_path):
    store.append_from("a", "s1", [(1, event("committed")), (2, against("n1", gpu="GPU-1"))])
    store.append_from("a", "s1", [(2, against("n1", gpu="GPU-1"))])
    others = against("n2", "LOST", 7.0), against("n3", "A_NEWER_KIND")
    store.tell_waiting([], [dataclasses.replace(told, job_id="b") for told in others])
    one = Incident(job_id="a", kind=IncidentKind.HANG, node="n1", gpu="GPU-1", time_s=5.0, message="rank 1 does not move")
    other = Incident(job_id="b", kind=IncidentKind.LOST, node="n2", time_s=7.0, message="rank 1 does not move")
    assert JobStore(tmp_path / "home" / "jobs.db").incidents(0.0) == [one, other]
    assert store.incidents(6.0) == [other]
    assert (store.forgive("n1"), store.forgive("n1")) == (1, 0)
    assert store.incidents(0.0) == [other]
    assert len(store.events("a")) == 2, "what has happened stays told"


def test_what_is_acknowledged_is_synced(store, tmp_path):
    with store._engine.connect() as connection:
        assert connection.exec_driver_sql("PRAGMA synchronous").scalar() == 2
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"
    assert sqlite3.connect(tmp_path / "home" / "jobs.db").execute("PRAGMA journal_mode").fetchone() == ("wal",)


@pytest.mark.parametrize("url", [
    "hunter2", "postgresql://u:hunter2@h:port/x", "postgresql//u:hunter2@h/x", "postgresql:/u:hunter2@h/x", "postgresql://u:a@hunter2@h/x",
])  # fmt: skip
def test_an_address_that_is_none_is_refused_without_its_password(url, tmp_path, monkeypatch):
    monkeypatch.setenv(DATABASE_VARIABLE, url)
    monkeypatch.chdir(tmp_path)
    for ask in (place_of, exists, lambda home: JobStore(place_of(home)), lambda home: as_argument(url)):
        with pytest.raises(ConfigError, match=r"is no database: .*allowed are postgresql://USER@HOST") as caught:
            ask(Home(tmp_path / "home"))
        assert "hunter2" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def _hammer(path, name):
    store = JobStore(path)
    for number in range(20):
        while True:
            try:
                store.update(store.get("a"), [event(f"{name}{number}")])
                break
            except StaleWrite:
                continue


def test_concurrent_writers_lose_nothing(tmp_path):
    path = tmp_path / "jobs.db"
    context = multiprocessing.get_context("spawn")
    JobStore(path).put(Job(id="a", spec=SPEC))
    writers = [context.Process(target=_hammer, args=(path, name)) for name in "xyz"]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(LIMIT_S)
        assert writer.exitcode == 0
    store = JobStore(path)
    assert store.get("a").version == 60
    assert [seq for seq, _ in store.events("a")] == list(range(1, 61))
    assert len({found.message for _, found in store.events("a")}) == 60


