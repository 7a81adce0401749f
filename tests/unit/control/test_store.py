from __future__ import annotations

import multiprocessing
import sqlite3

import pytest

from orchestrator.control.planning.reputation import Incident
from orchestrator.control.records.store import JobStore
from orchestrator.errors import IllegalTransition, JobNotFound, StaleWrite, StateError
from orchestrator.events import Event, EventKind, IncidentKind
from orchestrator.job import EndReason, Job, JobResult, JobState, Progress
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


def test_a_row_comes_back_as_it_was(store):
    job = Job(id="a", spec=SPEC, submitted_s=2.0, progress=Progress(step=3, loss=0.25), placement=(("n", 2),))
    store.put(job, [event("submitted")])
    assert store.get("a") == job
    result = JobResult(end_reason=EndReason.COMPLETED, message="fine", metrics={"val_loss": 1.0})
    store.update(store.update(job, state=JobState.STARTING), state=JobState.SUCCEEDED, result=result)
    assert store.get("a").result == result
    assert store.get("a").version == 2


def test_writes_survive_the_process_and_a_second_store_sees_them(store, tmp_path):
    store.put(Job(id="a", spec=SPEC))
    assert JobStore(tmp_path / "home" / "jobs.db").get("a").spec == SPEC


def test_an_id_is_given_once(store):
    store.put(Job(id="a", spec=SPEC))
    with pytest.raises(StateError, match="already a job named a"):
        store.put(Job(id="a", spec=SPEC))


def test_a_stale_write_is_refused_and_changes_nothing(store):
    job = Job(id="a", spec=SPEC)
    store.put(job)
    store.update(job, stop_requested="drain")
    with pytest.raises(StaleWrite):
        store.update(job, [event("lost")], reason="other")
    assert store.get("a").reason == ""
    assert store.get("a").stop_requested == "drain"
    assert store.events("a") == []


def test_an_illegal_move_is_refused(store):
    job = Job(id="a", spec=SPEC)
    store.put(job)
    with pytest.raises(IllegalTransition):
        store.update(job, state=JobState.RUNNING)
    assert store.get("a") == job


def test_find_takes_a_unique_prefix_and_names_the_candidates(store):
    for number, job_id in enumerate(("gpt-aaa", "gpt-abc", "resnet-x")):
        store.put(Job(id=job_id, spec=SPEC, submitted_s=number))
    assert store.find("res").id == "resnet-x"
    assert store.find("gpt-aaa").id == "gpt-aaa"
    with pytest.raises(JobNotFound, match="'gpt' fits 2 jobs: gpt-aaa, gpt-abc"):
        store.find("gpt")
    with pytest.raises(JobNotFound, match="Did you mean 'resnet-x'"):
        store.find("resnt-x")
    with pytest.raises(JobNotFound):
        store.find("")


def test_all_filters_by_state_in_order_of_submission(store):
    for number, state in enumerate((JobState.FAILED, JobState.QUEUED, JobState.RUNNING)):
        store.put(Job(id=f"j{9 - number}", spec=SPEC, state=state, submitted_s=number))
    assert [job.id for job in store.all()] == ["j9", "j8", "j7"]
    assert [job.id for job in store.all([JobState.QUEUED, JobState.RUNNING])] == ["j8", "j7"]


def test_events_are_numbered_per_job(store):
    store.append_events("a", [event("1"), event("2")])
    store.append_events("b", [event("other")])
    store.append_events("a", [event("3")])
    assert [(seq, found.message) for seq, found in store.events("a", after=1)] == [(2, "2"), (3, "3")]
    assert store.events("a")[0][1] == event("1")


def test_events_of_a_source_are_taken_once_and_in_order(store):
    store.append_events("a", [event("own")])
    assert store.append_from("a", "s1", [(2, event("s1.2")), (1, event("s1.1"))]) == 2
    assert store.append_from("a", "s1", [(2, event("s1.2")), (3, event("s1.3"))]) == 3
    assert store.append_from("a", "s1", []) == 3
    assert store.append_from("a", "s2", [(1, event("s2.1"))]) == 1
    assert [found.message for _, found in store.events("a")] == ["own", "s1.1", "s1.2", "s1.3", "s2.1"]
    assert (store.cursor("a", "s1"), store.cursor("a", "s2"), store.cursor("b", "s1")) == (3, 1, 0)


def test_meta(store):
    assert store.meta("cluster") is None
    store.set_meta("cluster", {"nodes": []})
    store.set_meta("cluster", {"nodes": [1]})
    assert store.meta("cluster") == {"nodes": [1]}


def against(node, kind="HANG", time_s=5.0, **more):
    fields = {"incident": kind, "node": node, **more}
    return Event(kind=EventKind.HANG, job_id="a", time_s=time_s, message="rank 1 does not move\nits stack", fields=fields)


def test_events_that_speak_against_a_machine_are_kept_over_all_jobs_until_it_is_forgiven(store, tmp_path):
    store.append_from("a", "s1", [(1, event("committed")), (2, against("n1", gpu="GPU-1"))])
    store.append_from("a", "s1", [(2, against("n1", gpu="GPU-1"))])
    store.append_events("b", [against("n2", "LOST", 7.0), against("n3", "A_NEWER_KIND")])
    one = Incident(job_id="a", kind=IncidentKind.HANG, node="n1", gpu="GPU-1", time_s=5.0, message="rank 1 does not move")
    other = Incident(job_id="b", kind=IncidentKind.LOST, node="n2", time_s=7.0, message="rank 1 does not move")
    assert JobStore(tmp_path / "home" / "jobs.db").incidents(0.0) == [one, other]
    assert store.incidents(6.0) == [other]
    assert (store.forgive("n1"), store.forgive("n1")) == (1, 0)
    assert store.incidents(0.0) == [other]
    assert len(store.events("a")) == 2, "what has happened stays told"


def test_another_schema_version_is_refused(store, tmp_path):
    store.set_meta("schema_version", 99)
    with pytest.raises(StateError, match="schema version 99, this program needs 3"):
        JobStore(tmp_path / "home" / "jobs.db")


def test_what_is_acknowledged_is_synced(store, tmp_path):
    with store._engine.connect() as connection:
        assert connection.exec_driver_sql("PRAGMA synchronous").scalar() == 2
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"
    assert sqlite3.connect(tmp_path / "home" / "jobs.db").execute("PRAGMA journal_mode").fetchone() == ("wal",)


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
        writer.join(60)
        assert writer.exitcode == 0
    store = JobStore(path)
    assert store.get("a").version == 60
    assert [seq for seq, _ in store.events("a")] == list(range(1, 61))
    assert len({found.message for _, found in store.events("a")}) == 60


def test_a_write_of_another_connection_ends_the_wait(store, tmp_path):
    store.wait_for_change(0.0)
    assert not store.wait_for_change(0.01)
    other = JobStore(tmp_path / "home" / "jobs.db")
    other.put(Job(id="a", spec=SPEC))
    assert store.wait_for_change(60.0)
    assert not store.wait_for_change(0.01)
    other.close()
