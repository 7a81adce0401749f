"""What a job store must do, asked of both databases: SQLite in a file, and a PostgreSQL server."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import sqlalchemy as sa
from patience import LIMIT_S, wait_until
from postgres import NEEDED, new_database, postgres, programs

from orchestrator.control.api.listing import Listing
from orchestrator.control.client import Client
from orchestrator.control.planning.accounts import MAX_STAYS, Stay
from orchestrator.control.planning.reputation import MEMORY_S
from orchestrator.control.reading.overview import Window, overview
from orchestrator.control.reading.totals import Totals, totals
from orchestrator.control.records import tables
from orchestrator.control.records.audit import AuditLog
from orchestrator.control.records.database import open_engine
from orchestrator.control.records.lease import ControllerLease
from orchestrator.control.records.outdated import BATCH, delete_outdated
from orchestrator.control.records.store import JobStore
from orchestrator.control.records.transfer import export_store, import_store
from orchestrator.control.records.users import Role, User, Users
from orchestrator.control.scheduler import ClusterView
from orchestrator.errors import (
    AuthenticationError,
    ConfigError,
    IllegalTransition,
    JobNotFound,
    StaleWrite,
    StateError,
    StoreUnavailable,
    UserError,
)
from orchestrator.events import Event, EventKind
from orchestrator.job import EndReason, Job, JobResult, JobState, Progress
from orchestrator.paths import Home
from orchestrator.spec import DataSpec, JobSpec, ModelSpec, TrainingSpec, WorkloadSpec

SPEC = JobSpec(
    workload=WorkloadSpec(name="tiny", entrypoint="tiny:Tiny"),
    model=ModelSpec(name="m"),
    data=DataSpec(name="d", options={"a": [1, {"b": None}], "ü": "€"}),
    training=TrainingSpec(max_steps=10, global_batch_size=8, micro_batch_size=2),
)

STAY = Stay(job_id="j", tenant="t", width=1, asked_width=1, started_s=1.0, ended_s=2.0, ran_s=1.0, succeeded=True)


@pytest.fixture(scope="module")
def server():
    if programs() is None:
        pytest.skip(NEEDED)
    with postgres() as url:
        yield url


@pytest.fixture(params=["sqlite", "postgresql"])
def where(request, tmp_path):
    if request.param == "sqlite":
        return str(tmp_path / "jobs.db")
    return new_database(request.getfixturevalue("server"))


@pytest.fixture
def store(where):
    opened = JobStore(where)
    yield opened
    opened.close()


def event(message: str, kind: EventKind = EventKind.WARNING, **fields) -> Event:
    return Event(kind=kind, job_id="a", time_s=1.5, message=message, fields=fields)


# connections


def test_a_connection_that_the_server_has_ended_is_made_anew(server):
    url = new_database(server)
    store, other = JobStore(url), open_engine(url)
    store.put(Job(id="a", spec=SPEC))

    def of_the_others(what):
        with other.connect() as connection:  # each transaction has its own view of what there is
            where = "FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
            return connection.execute(sa.text(f"SELECT {what} {where}")).scalar()

    assert of_the_others("bool_and(pg_terminate_backend(pid))")
    wait_until(lambda: not of_the_others("count(*)"))
    assert store.get("a").id == "a"


def test_a_transaction_that_nobody_goes_on_with_holds_the_others_up_for_seconds(server):
    with JobStore(new_database(server)).engine.connect() as connection:
        found = [connection.execute(sa.text(f"SHOW {name}")).scalar() for name in ("idle_in_transaction_session_timeout", "lock_timeout")]
    assert found == ["15s", "20s"]


# jobs


def test_a_row_comes_back_as_it_was(store):
    job = Job(id="a", spec=SPEC, submitted_s=2.0, progress=Progress(step=3, loss=0.25), placement=(("n", 2),), user="ann", tenant="vision")
    store.put(job, [event("submitted")])
    assert store.get("a") == store.find("a") == job
    result = JobResult(end_reason=EndReason.COMPLETED, message="fine", metrics={"val_loss": 1.0})
    ended = store.update(store.update(job, state=JobState.STARTING), state=JobState.SUCCEEDED, result=result, standby=("s", ""))
    assert store.get("a") == ended
    assert (ended.result, ended.version) == (result, 2)


def test_what_a_database_would_not_take_is_kept_all_the_same(store):
    store.put(Job(id="a", spec=SPEC, reason="cut \x00 here \udcff", progress=Progress(loss=math.nan, val_loss=math.inf)))
    store.tell_waiting([], [event("binary \x00 output", loss=math.nan)])
    found = store.get("a")
    assert found.reason == "cut \ufffd here ?"
    assert math.isnan(found.progress.loss) and found.progress.val_loss == math.inf
    assert store.events("a")[0][1].message == "binary \ufffd output"


def test_writes_are_seen_by_another_store(store, where):
    store.put(Job(id="a", spec=SPEC))
    other = JobStore(where)
    assert other.get("a").spec == SPEC
    other.close()


def test_an_id_is_given_once_and_what_came_with_it_is_not_written(store):
    store.put(Job(id="a", spec=SPEC), [event("first")])
    with pytest.raises(StateError, match="already a job named a"):
        store.put(Job(id="a", spec=SPEC), [event("second")])
    assert [told.message for _, told in store.events("a")] == ["first"]


def test_a_stale_write_is_refused_and_changes_nothing(store):
    job = Job(id="a", spec=SPEC)
    store.put(job)
    store.update(job, stop_requested="drain")
    with pytest.raises(StaleWrite):
        store.update(job, [event("lost")], reason="other")
    assert (store.get("a").reason, store.get("a").stop_requested, store.events("a")) == ("", "drain", [])


def test_of_writers_at_the_same_time_one_wins_each_version(store):
    store.put(Job(id="a", spec=SPEC))

    def write(number: int) -> bool:
        try:
            store.update(dataclasses.replace(Job(id="a", spec=SPEC)), [event(str(number))], reason=str(number))
        except StaleWrite:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(write, range(16))) == 1
    assert [told.message for _, told in store.events("a")] == [store.get("a").reason]


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
    with pytest.raises(JobNotFound, match="'gpt' fits 2 jobs: gpt-aaa, gpt-abc"):
        store.find("gpt")
    with pytest.raises(JobNotFound, match="Did you mean 'resnet-x'"):
        store.find("resnt-x")
    for strange in ("", "\x00", "%", "gpt-aaa\x00b"):
        with pytest.raises(JobNotFound):
            store.find(strange)


def test_jobs_and_summaries_by_state_in_order_of_submission(store):
    for number, state in enumerate((JobState.FAILED, JobState.QUEUED, JobState.RUNNING)):
        store.put(Job(id=f"j{9 - number}", spec=SPEC, state=state, submitted_s=number, tenant=f"t{number}", progress=Progress(step=number)))
    assert [job.id for job in store.all()] == [job.id for job in store.summaries()] == ["j9", "j8", "j7"]
    assert [job.id for job in store.all([JobState.QUEUED, JobState.RUNNING])] == ["j8", "j7"]
    only = store.summaries([JobState.RUNNING])
    assert [(job.id, job.num_workers, job.max_steps, job.workload, job.progress.step, job.tenant) for job in only] == [
        ("j7", SPEC.resources.num_workers, 10, "tiny", 2, "t2")
    ]


def test_the_overview_counts_orders_and_finds(store):
    states = {"a_1": JobState.QUEUED, "A-2": JobState.QUEUED, "b": JobState.RUNNING, "c": JobState.FAILED}
    for number, (job_id, state) in enumerate(states.items()):
        job = Job(id=job_id, spec=SPEC, state=state, position=0 if number else 7, tenant="vision", placement=(("n", 1),) * (job_id == "b"))
        store.put(dataclasses.replace(job, progress=Progress(loss=math.nan)))
    found = overview(store, ClusterView(), Window(limit=10, offsets={}))
    assert [job["id"] for job in found["waiting"]["jobs"]] == ["a_1", "A-2"]
    assert (found["jobs"]["running"], found["tenants"][0]["cpus_used"], found["ended"]["total"]) == (1, SPEC.resources.cpus_per_worker, 1)
    for words, ids in (("A_", ["a_1"]), ("a-", ["A-2"]), ("VISION", ["a_1", "A-2"]), ("%", [])):
        part = overview(store, ClusterView(), Window(find=words, limit=10, offsets={}))["waiting"]
        assert ([job["id"] for job in part["jobs"]], part["total"]) == (ids, len(ids))
    assert [job["id"] for job in overview(store, ClusterView(), Window(limit=1, offsets={"waiting": 1}))["waiting"]["jobs"]] == ["A-2"]


# events


def test_events_are_numbered_per_job_and_given_in_parts(store):
    store.tell_waiting([], [event("1", n=[1]), event("2")])
    store.tell_waiting([], [dataclasses.replace(event("other"), job_id="b")])
    store.tell_waiting([], [event("3")])
    assert [(seq, found.message) for seq, found in store.events("a", after=1)] == [(2, "2"), (3, "3")]
    assert store.events("a", limit=1) == [(1, event("1", n=[1]))]


def test_events_of_a_source_are_taken_once_and_in_order(store):
    store.tell_waiting([], [event("own")])
    assert store.append_from("a", "s1", [(2, event("s1.2")), (1, event("s1.1"))]) == 2
    assert store.append_from("a", "s1", [(2, event("s1.2")), (3, event("s1.3"))]) == 3
    assert store.append_from("a", "s2", [(1, event("s2.1"))]) == 1
    assert [found.message for _, found in store.events("a")] == ["own", "s1.1", "s1.2", "s1.3", "s2.1"]
    assert (store.cursor("a", "s1"), store.cursor("a", "s2"), store.cursor("b", "s1")) == (3, 1, 0)


def test_events_that_many_write_at_once_get_one_number_each(store):
    def write(number: int) -> None:
        store.tell_waiting([], [event(f"own {number}")])
        store.append_from("a", "s", [(seq, event(f"s.{seq}")) for seq in range(1, number + 2)])

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(write, range(12)))
    told = store.events("a")
    assert [seq for seq, _ in told] == list(range(1, 25))
    assert sorted(found.message for _, found in told if found.message.startswith("s.")) == sorted(f"s.{n}" for n in range(1, 13))


def test_machines_are_remembered_and_forgiven(store):
    told = {"incident": "HANG", "node": "n1", "gpu": "GPU-1"}
    store.tell_waiting([], [event("rank 1 does not move\nits stack", EventKind.HANG, **told)])
    assert [(found.node, found.gpu, found.message) for found in store.incidents(0.0)] == [("n1", "GPU-1", "rank 1 does not move")]
    assert (store.forgive("n1"), store.forgive("n1")) == (1, 0)


def test_what_is_never_read_again_is_deleted_in_small_parts(store):
    stays = [dict(vars(STAY), job_id=f"j{number}") for number in range(MAX_STAYS + BATCH + 10)]
    against = {"kind": "HANG", "node": "n", "gpu": "", "message": ""}
    old = [{"job_id": "a", "seq": number, "time_s": 1.0 + (number > BATCH), **against} for number in range(BATCH + 10)]
    with store.engine.begin() as connection:
        connection.execute(tables.stays.insert(), stays)
        connection.execute(tables.incidents.insert(), [*old, {"job_id": "a", "seq": 10**6, "time_s": 10.0, **against}])
    before = store.stays()
    assert delete_outdated(store.engine, MEMORY_S + 10.0), "there is more"
    assert (count(store, tables.stays), count(store, tables.incidents)) == (MAX_STAYS + 10, 10)
    assert not delete_outdated(store.engine, MEMORY_S + 10.0)
    assert store.stays() == before and (count(store, tables.stays), count(store, tables.incidents)) == (MAX_STAYS, 1)
    assert not delete_outdated(store.engine, MEMORY_S + 10.0)
    assert count(store, tables.stays) == MAX_STAYS


def count(store, table) -> int:
    with store.engine.connect() as connection:
        return connection.execute(sa.select(sa.func.count()).select_from(table)).scalar_one()


def test_meta(store):
    assert store.meta("cluster") is None
    store.set_meta("cluster", {"nodes": []})
    store.set_meta("cluster", {"nodes": [1]})
    assert store.meta("cluster") == {"nodes": [1]}


def test_totals_count_all_jobs_and_tell_of_those_that_hold_a_place(store):
    assert totals(store.engine) == Totals(jobs={}, places=[], queued_since_s=None)
    store.put(Job(id="a", spec=SPEC, tenant="t", state=JobState.RUNNING, placement=(("n", 2), ("m", 1))))
    for number, state in enumerate((JobState.QUEUED, JobState.QUEUED, JobState.FAILED)):
        store.put(Job(id=f"b{number}", spec=SPEC, tenant="t", state=state, queued_s=5.0 - number))
    found = totals(store.engine)
    assert found.jobs == {("t", "running"): 1, ("t", "queued"): 2, ("t", "failed"): 1}
    assert ([(place.workers, place.gpus, place.state) for place in found.places], found.queued_since_s) == ([(3, 0, "running")], 4.0)


def test_a_fact_is_written_by_many_at_the_same_moment(store):
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: store.set_meta(f"fact {number // 8}", number), range(80)))
    assert [store.meta(f"fact {number}") // 8 for number in range(10)] == list(range(10))


# changes


def test_a_change_of_another_store_wakes_who_waits(store, where):
    while store.wait_for_change(0.2):  # what happened before
        pass
    other = JobStore(where)
    while store.wait_for_change(0.2):  # its tables were looked after
        pass
    woken = threading.Event()
    waiting = threading.Thread(target=lambda: store.wait_for_change(LIMIT_S) and woken.set())
    waiting.start()
    other.put(Job(id="a", spec=SPEC))
    assert woken.wait(LIMIT_S)
    waiting.join()
    wait_until(lambda: not store.wait_for_change(0.05), "quiet")
    other.close()


# schema, users, lease


def test_another_schema_version_is_refused_with_the_way_out(store, where):
    store.set_meta("schema_version", 99)
    with pytest.raises(StateError, match=r"schema version 99, this program needs \d+.*orchestrator store export FILE.*import FILE"):
        JobStore(where)


def test_admins_who_revoke_each_other_at_the_same_moment_leave_one(store):
    users, admins = Users(store.engine), ("ann", "bob", "cat", "dan")
    for name in (*admins, "eve"):
        users.add(name, "ops", "user" if name == "eve" else "admin")
    with ThreadPoolExecutor(len(admins)) as pool:
        revoked = list(pool.map(lambda name: users.revoke(name, keep_an_admin=True), admins))
    assert sorted(revoked) == [False, True, True, True]
    (left,) = [user.name for user in users.all() if user.role is Role.ADMIN and user.revoked_s is None]
    assert users.revoke("eve", keep_an_admin=True) is True and users.revoke(left) is True


def test_a_store_goes_through_a_file_into_the_other_kind_and_back(store, where, server, tmp_path):
    result = JobResult(end_reason=EndReason.CANCELLED, message="m")
    store.put(Job(id="a", spec=SPEC, progress=Progress(loss=math.nan), result=result), [event("one", n={"x": [1]}), event("two")])
    users = Users(store.engine)
    token = users.add("ann", "vision", "user")
    AuditLog(store.engine).add(User(name="ann", tenant="vision", role=Role.USER), "submit", "a")
    counts = export_store(where, tmp_path / "file")
    assert (counts["jobs"], counts["events"], counts["users"], counts["audit"]) == (1, 2, 1, 1)
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o600
    other = str(tmp_path / "other.db") if "://" in where else new_database(server)
    assert import_store(other, tmp_path / "file") == {name: count for name, count in counts.items() if name != "meta" and count}
    copy = JobStore(other)
    assert repr(copy.get("a")) == repr(store.get("a"))  # nan is not equal to itself
    assert copy.events("a") == store.events("a")
    assert Users(copy.engine).of_token(token).name == "ann"
    AuditLog(copy.engine).add(User(name="ann", tenant="vision", role=Role.USER), "stop", "a")
    assert [entry.seq for entry in AuditLog(copy.engine).read()] == [1, 2]
    with pytest.raises(StateError, match="is not empty, it has audit, events, jobs, users: import into a new one"):
        import_store(other, tmp_path / "file")
    with pytest.raises(UserError, match="is there already"):
        export_store(where, tmp_path / "file")


def test_an_older_store_is_exported_and_fits_into_a_new_one(store, where, tmp_path):
    store.put(Job(id="a", spec=SPEC))
    with store.engine.begin() as connection:
        for column in ("user", "tenant"):
            connection.execute(sa.text(f'ALTER TABLE jobs DROP COLUMN "{column}"'))
        connection.execute(sa.text("ALTER TABLE jobs ADD COLUMN unknown TEXT"))
    store.set_meta("schema_version", 2)
    export_store(where, tmp_path / "file")
    import_store(tmp_path / "new.db", tmp_path / "file")
    assert JobStore(tmp_path / "new.db").get("a") == Job(id="a", spec=SPEC)


def test_an_import_overwrites_nothing_and_leaves_alone_what_the_store_says_of_itself(store, where, tmp_path):
    source = JobStore(tmp_path / "source.db")
    source.put(Job(id="a", spec=SPEC))
    for key, value in (("cluster", {"nodes": ["old"]}), ("policy", {"name": "fifo", "settings": {}})):
        source.set_meta(key, value)
    export_store(tmp_path / "source.db", tmp_path / "file")
    store.set_meta("cluster", {"nodes": ["new"]})
    lease = ControllerLease(store.engine, 3000.0, me=holder(1))
    lease.acquire()
    with pytest.raises(StateError, match=r"a controller serves the job store .* \(pid 1 on host1\): stop it before an import"):
        import_store(where, tmp_path / "file")
    lease.release()
    users = Users(store.engine)
    token = users.add("ann", "vision", "user")
    with pytest.raises(StateError, match="is not empty, it has users: import into a new one"):
        import_store(where, tmp_path / "file")
    assert store.all() == [] and users.of_token(token).name == "ann"
    with store.engine.begin() as connection:
        connection.execute(tables.metadata.tables["users"].delete())
    import_store(where, tmp_path / "file")
    assert [job.id for job in store.all()] == ["a"]
    assert (store.meta("cluster"), store.meta("policy")["name"]) == ({"nodes": ["new"]}, "fifo")


@pytest.mark.parametrize("damage", ["no header", "half a line", "no text", "no letters"])
def test_a_damaged_file_leaves_nothing(store, where, tmp_path, damage):
    store.put(Job(id="a", spec=SPEC))
    export_store(where, tmp_path / "file")
    text = (tmp_path / "file").read_text()
    _, _, rows = text.partition("\n")
    damaged = {"no header": rows, "half a line": text[:-20], "no text": "\xff\xfe", "no letters": text.replace("tiny", "t\xffny")}
    (tmp_path / "file").write_text(damaged[damage], encoding="latin-1")
    with pytest.raises(UserError, match=r"was not written by|is damaged"):
        import_store(tmp_path / "new.db", tmp_path / "file")
    assert JobStore(tmp_path / "new.db").all() == []


def test_users_are_known_by_a_token_of_which_only_a_hash_is_kept(store):
    users = Users(store.engine)
    token = users.add("ann", "vision", "user")
    assert users.of_token(token) == dataclasses.replace(users.all()[0])
    assert (users.all()[0].tenant, users.all()[0].role) == ("vision", Role.USER)
    with store.engine.connect() as connection:
        rows = [dict(row) for row in connection.execute(sa.select(tables.metadata.tables["users"])).mappings()]
    assert token.rpartition(".")[2] not in json.dumps(rows)
    newer = users.renew("ann")
    for wrong in (token, newer + "x", newer[:-1], "", "ann", "orc.ann.", "orc.bob.x", "\x00", "orc.\x00.\udcff"):
        with pytest.raises(AuthenticationError, match="not known, or was revoked"):
            users.of_token(wrong)
    users.revoke("ann")
    with pytest.raises(AuthenticationError):
        users.of_token(newer)
    assert users.of_token(users.renew("ann")).name == "ann"
    with pytest.raises(UserError, match="already a user named ann"):
        users.add("ann", "x", "user")
    with pytest.raises(ConfigError, match=r"role=amin is not possible: allowed is viewer, user, admin\..*Did you mean 'admin'"):
        users.add("bob", "x", "amin")
    with pytest.raises(UserError, match="Did you mean 'ann'"):
        users.revoke("anne")


def holder(pid: int) -> dict:
    return {"host": f"host{pid}", "machine": f"m{pid}", "pid": pid, "created": 1.0}


def test_a_second_controller_is_refused_while_the_lease_of_the_first_lives(store):
    now = [0.0]
    first = ControllerLease(store.engine, 3000.0, lambda: now[0], holder(1))
    second = ControllerLease(store.engine, 3000.0, lambda: now[0], holder(2))
    first.acquire()
    assert first.held and not second.held
    refused = r"another controller serves this job store: pid 1 on host1; its lease lives for (2[89]..|3000) s more"
    with pytest.raises(StateError, match=refused):
        second.acquire()
    first.release()
    assert not first.held
    second.acquire()
    assert second.held and not first.renew()


def test_a_holder_that_could_not_renew_gives_up_before_the_next_one_can_come(store):
    now = [0.0]
    first = ControllerLease(store.engine, 0.2, lambda: now[0], holder(1))
    first.acquire()
    now[0] = 0.15
    assert first.held
    now[0] = 0.17
    assert not first.held  # by its own clock; in the database it still lives, or has just ended
    second = ControllerLease(store.engine, 3000.0, time.monotonic, holder(2))

    def acquired():
        with contextlib.suppress(StateError):
            second.acquire()
        return second.held

    wait_until(acquired)
    assert not first.renew() and not first.held


def test_whoever_keeps_a_lease_hears_that_it_is_lost_though_the_database_hangs(store, monkeypatch):
    lost, hangs = threading.Event(), threading.Event()
    lease = ControllerLease(store.engine, 0.6, me=holder(1))
    lease.acquire()
    monkeypatch.setattr(lease, "renew", hangs.wait)
    lease.keep(lost.set)
    renewing = next(thread for thread in threading.enumerate() if thread.name == "lease")
    try:
        assert lost.wait(LIMIT_S) and not lease.held
    finally:
        hangs.set()
        renewing.join(LIMIT_S)
    assert not renewing.is_alive(), "what is lost is not renewed any more"


def test_the_lease_of_a_process_of_this_machine_that_is_gone_is_taken_at_once(store):
    mine = ControllerLease(store.engine)
    mine.acquire()
    gone = dict(mine._me, pid=2**22 + 1)
    mine.release()
    ControllerLease(store.engine, 3000.0, me=gone).acquire()
    mine.acquire()
    assert mine.held and mine.renew()


def test_what_a_client_changes_is_in_the_audit_log_with_the_change(store, tmp_path):
    client = Client(Home(tmp_path), store, User(name="ann", tenant="vision", role=Role.USER))
    job = client.submit(SPEC, {})
    client.request_stop(job.id, "drain")
    client.request_stop(job.id, "drain")
    entries = AuditLog(store.engine).read()
    assert [(entry.user, entry.tenant, entry.action, entry.subject, entry.detail) for entry in entries] == [
        ("ann", "vision", "submit", job.id, ""), ("ann", "vision", "stop", job.id, "drain")
    ]  # fmt: skip
    assert (job.user, job.tenant) == ("ann", "vision")


def test_of_a_long_audit_log_the_newest_are_read_or_those_after_a_number(store):
    log = AuditLog(store.engine)
    for number in range(5):
        log.add(User(name="ann", tenant="vision", role=Role.USER), "stop", str(number))
    found = {after: [entry.subject for entry in log.read(after, 2)] for after in (None, 0, 2)}
    assert found == {None: ["3", "4"], 0: ["0", "1"], 2: ["2", "3"]}


def test_a_database_that_is_not_there_is_told_without_its_password(tmp_path):
    with pytest.raises(StoreUnavailable, match="does not answer") as caught:
        JobStore(f"postgresql://me:hunter2@/x?host={tmp_path}")
    assert "hunter2" not in str(caught.value)
    for url in ("mysql://x/y", "postgresql//x", "nonsense://"):
        with pytest.raises(ConfigError, match="is no database"):
            JobStore(url if "://" in url else f"{url}://")


def test_jobs_that_many_put_at_once_are_all_there_and_one_that_cannot_be_fails_alone(store):
    store.put(Job(id="taken", spec=SPEC))

    def put(number: int) -> str:
        try:
            store.put(Job(id="taken" if number % 5 == 0 else f"j{number}", spec=SPEC), [event(str(number))])
        except StateError as error:
            return str(error)
        return ""

    with ThreadPoolExecutor(8) as pool:
        refused = [error for error in pool.map(put, range(40)) if error]
    assert refused == ["there is already a job named taken"] * 8
    assert {job.id for job in store.all()} == {"taken", *(f"j{number}" for number in range(40) if number % 5)}
    assert [told.message for _, told in store.events("j1")] == ["1"] and store.events("taken") == []


def test_a_list_that_is_kept_follows_every_change(store):
    listing = Listing(store.engine)
    for number in range(3):
        store.put(Job(id=f"j{number}", spec=SPEC, submitted_s=number, tenant=f"t{number}"))
    assert [kept.summary.id for kept in listing.page()] == ["j0", "j1", "j2"]
    store.update(store.get("j1"), state=JobState.STARTING)
    store.tell_waiting([dataclasses.replace(store.get("j0"), reason="waits", position=4)], [])
    store.put(Job(id="j3", spec=SPEC, submitted_s=1.5))
    now = time.time()
    shown = [json.loads(kept.shown(now)) for kept in listing.page()]
    assert [(job["id"], job["state"], job["reason"], job["position"]) for job in shown] == [
        ("j0", "queued", "waits", 4), ("j1", "starting", "", None), ("j3", "queued", "", None), ("j2", "queued", "", None)
    ]  # fmt: skip
    assert shown == [summary.to_dict(now) for summary in store.summaries()]
    assert [kept.summary.id for kept in listing.page(state=JobState.QUEUED, after="j0", limit=1)] == ["j3"]
    assert [kept.summary.id for kept in listing.page(tenant="t2")] == ["j2"]
