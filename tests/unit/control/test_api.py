from __future__ import annotations

import dataclasses
import json
import logging
import re

import pytest
import sqlalchemy as sa
from starlette.testclient import TestClient

from orchestrator import errors
from orchestrator.control.api.answers import STATUS, status_of
from orchestrator.control.api.app import create_app
from orchestrator.control.api.bodies import LARGEST_BODY_BYTES
from orchestrator.control.api.server import ApiServer
from orchestrator.control.client import CLUSTER, Client
from orchestrator.control.pulse import SILENCE_S, START_S, Pulse
from orchestrator.control.records import tables
from orchestrator.control.records.audit import LONGEST
from orchestrator.control.records.database import writing
from orchestrator.control.records.store import JobStore
from orchestrator.control.records.users import Users
from orchestrator.control.scheduler import ClusterView
from orchestrator.control.scheduler.model import CPU_UNITS, Node
from orchestrator.errors import ClusterError, ConfigError
from orchestrator.events import Event, EventKind
from orchestrator.job import JobState, Progress, job_to_dict
from orchestrator.paths import Home, JobKeys
from orchestrator.spec import DataSpec, JobSpec, ModelSpec, TrainingSpec, WorkloadSpec, to_dict
from orchestrator.storage import open_store

SPEC = JobSpec(
    workload=WorkloadSpec(name="tiny", entrypoint="tiny:Tiny"),
    model=ModelSpec(name="m"),
    data=DataSpec(name="d"),
    training=TrainingSpec(max_steps=10, global_batch_size=8, micro_batch_size=2),
)
BODY = {"spec": to_dict(SPEC)}
CHANGES = (
    "/v1/jobs", "/v1/jobs/JOB/stop", "/v1/jobs/JOB/resume", "/v1/jobs/JOB/remove", "/v1/nodes/n/forgive", "/v1/users",
    "/v1/users/bob/renew", "/v1/users/bob/revoke",
)  # fmt: skip
BODIES = {"/v1/jobs": BODY, "/v1/users": {"name": "new"}}


class Service:
    """The API on a home of its own, and a token of each role."""

    def __init__(self, home: Home, open_reads: bool = False) -> None:
        self.home = home
        self.store = JobStore(home.jobs_db)
        self.pulse = Pulse()
        self.users = Users(self.store.engine)
        self.tokens = {name: self.users.add(name, tenant, role) for name, tenant, role in (
            ("ann", "vision", "user"), ("bob", "speech", "user"), ("eve", "vision", "viewer"), ("root", "ops", "admin"))}  # fmt: skip
        self.app = create_app(home, self.store, self.pulse, open_reads=open_reads)
        self.http = TestClient(self.app, base_url="http://127.0.0.1")

    def ask(self, method: str, path: str, user: str | bytes = "ann", **more):
        token = self.tokens.get(user, user)
        headers = {"Authorization": b"Bearer " + (token if isinstance(token, bytes) else token.encode())} if user else {}
        return self.http.request(method, path, headers={**headers, "Content-Type": "application/json"}, **more)

    def submit(self, user: str = "ann", **more) -> str:
        response = self.ask("POST", "/v1/jobs", user, json={**BODY, **more})
        assert response.status_code == 201, response.text
        return response.json()["id"]

    def end(self, job_id: str) -> None:
        job = self.store.update(self.store.get(job_id), state=JobState.STARTING)
        self.store.update(job, state=JobState.SUCCEEDED, ended_s=1.0)


@pytest.fixture
def service(tmp_path):
    made = Service(Home(tmp_path))
    yield made
    made.store.close()


def said(response, status: int, error: str, *words: str) -> None:
    assert (response.status_code, response.json()["error"]) == (status, error), response.text
    assert all(word in response.json()["message"] for word in words), response.text


def test_a_job_is_submitted_listed_shown_stopped_and_resumed(service):
    job_id = service.submit()
    shown = service.ask("GET", f"/v1/jobs/{job_id[:-2]}").json()
    assert (shown["id"], shown["state"], shown["user"], shown["tenant"]) == (job_id, "queued", "ann", "vision")
    assert shown == json.loads(json.dumps(shown)) and shown["spec"]["training"]["max_steps"] == 10
    assert [job["id"] for job in service.ask("GET", "/v1/jobs").json()["jobs"]] == [job_id]
    assert service.ask("POST", f"/v1/jobs/{job_id}/stop", json={"mode": "now"}).json()["stop_requested"] == "now"
    service.end(job_id)
    again = service.ask("POST", f"/v1/jobs/{job_id}/resume", json={}).json()
    assert (again["state"], again["run"]) == ("queued", 2)


def test_what_cannot_be_is_refused_in_the_words_of_the_command_line(service):
    wrong = to_dict(SPEC)
    wrong["training"]["max_step"] = wrong["training"].pop("max_steps")
    refused = service.ask("POST", "/v1/jobs", json={"spec": wrong})
    said(refused, 422, "ConfigError", "training.max_step is no setting", "Did you mean 'max_steps'")
    uneven = to_dict(dataclasses.replace(SPEC, training=dataclasses.replace(SPEC.training, micro_batch_size=3)))
    said(service.ask("POST", "/v1/jobs", json={"spec": uneven}), 422, "LayoutError", "training.micro_batch_size=3 does not divide")
    service.store.set_meta(CLUSTER, ClusterView(nodes=(Node(id="n", cpu_units=CPU_UNITS // 2),)).to_dict())
    said(service.ask("POST", "/v1/jobs", json=BODY), 422, "ConfigError", "more than the cluster can ever have")
    said(service.ask("GET", "/v1/jobs/nothing"), 404, "JobNotFound", "no job is named 'nothing'")
    assert service.ask("GET", "/v1/jobs").json() == {"jobs": [], "next": ""}


@pytest.mark.parametrize(("body", "status"), [
    ("{", 422), ("[" * 100_000, 400), ('{"spec": 3}', 422), ('{"spec": {}}', 422), ("null", 422), ('{"spec": {"workload": 1e999}}', 422),
])  # fmt: skip
def test_a_body_that_is_none_is_never_an_error_of_the_server(service, body, status):
    assert service.ask("POST", "/v1/jobs", content=body).status_code == status


@pytest.mark.parametrize("depth", [65, 700, 900])
def test_settings_inside_settings_beyond_all_measure_are_refused(service, depth):
    deep = '{"a": ' * depth + "1" + "}" * depth
    for method, path, body in (("POST", "/v1/jobs", {"spec": {**to_dict(SPEC), "model": {"name": "m", "options": "DEEP"}}}),
                               ("PUT", "/v1/policy", {"name": "x", "settings": {"mode": "DEEP"}})):  # fmt: skip
        said(service.ask(method, path, "root", content=json.dumps(body).replace('"DEEP"', deep)), 422, "ConfigError", "inside each other")


@pytest.mark.parametrize("part", [
    {"training": {"max_steps": 10**30, "global_batch_size": 8, "micro_batch_size": 2}},
    {"training": {"max_steps": 10, "global_batch_size": 2**62, "micro_batch_size": 3}},
    {"training": {"max_steps": 10, "global_batch_size": 2**31, "micro_batch_size": 3}},
    {"data": {"name": "d", "options": {"x": float("nan")}}},
    {"data": {"name": "d", "options": {"x": "\x00"}}},
])  # fmt: skip
def test_numbers_and_texts_beyond_all_measure_are_refused(service, part):
    body = json.dumps({"spec": {**to_dict(SPEC), **part}})
    response = service.ask("POST", "/v1/jobs", content=body)
    assert response.status_code == 422, response.text


def test_a_request_that_is_too_large_is_not_read(service):
    response = service.ask("POST", "/v1/jobs", content=b" " * (LARGEST_BODY_BYTES + 1))
    said(response, 413, "UserError", f"allowed are {LARGEST_BODY_BYTES} bytes")


def test_secrets_reach_the_job_and_no_answer(service, caplog):
    caplog.set_level(logging.DEBUG)
    job_id = service.submit(secrets={"AWS_SECRET_ACCESS_KEY": "hunter2"})
    assert json.loads(service.home.secrets(job_id).read_text()) == {"AWS_SECRET_ACCESS_KEY": "hunter2"}
    paths = (f"/v1/jobs/{job_id}", "/v1/jobs?view=full", f"/v1/jobs/{job_id}/events", "/v1/audit")
    answers = [service.ask("GET", path, "root").text for path in paths]
    for secrets in ({"A": {"hunter2": 1}}, {"hunter2 =": "x"}, {"A": "hunter2\x00"}, ["hunter2"]):
        refused = service.ask("POST", "/v1/jobs", json={**BODY, "secrets": secrets})
        assert refused.status_code == 422
        answers += [refused.text] if "hunter2 =" not in secrets else []
    assert "hunter2" not in "".join(answers) + caplog.text


# users


@pytest.mark.parametrize("path", CHANGES)
@pytest.mark.parametrize("open_reads", [False, True])
def test_nothing_changes_without_a_token(tmp_path, path, open_reads):
    service = Service(Home(tmp_path), open_reads)
    job_id = service.submit()
    for user, wrong in (("", "a token is needed"), ("orc.ann.wrong", "not known"), (b"\xff", "not known")):
        response = service.ask("POST", path.replace("JOB", job_id), user, json=BODIES.get(path, {}))
        said(response, 401, "AuthenticationError", wrong)
        assert response.headers["www-authenticate"] == "Bearer"
    assert [job.stop_requested for job in service.store.all()] == [""]
    assert sorted((user.name, user.revoked_s) for user in service.users.all()) == [(name, None) for name in ("ann", "bob", "eve", "root")]
    assert service.ask("GET", "/v1/user", "bob").status_code == 200


@pytest.mark.parametrize("path", CHANGES)
def test_who_only_looks_on_changes_nothing_and_the_attempt_is_written_down(service, path):
    job_id = service.submit()
    response = service.ask("POST", path.replace("JOB", job_id), "eve", json=BODIES.get(path, {}))
    said(response, 403, "PermissionDenied", "eve has the role viewer")
    last = service.ask("GET", "/v1/audit", "root").json()["entries"][-1]
    assert last["user"] == "eve" and last["action"].startswith("refused ")
    assert service.ask("GET", "/v1/user", "bob").status_code == 200 and len(service.users.all()) == 4


def test_a_user_changes_the_jobs_of_the_own_tenant_and_an_admin_all(service):
    job_id = service.submit("ann")
    assert service.ask("GET", f"/v1/jobs/{job_id}", "bob").status_code == 200
    for verb in ("stop", "resume"):
        refused = service.ask("POST", f"/v1/jobs/{job_id}/{verb}", "bob", json={})
        said(refused, 403, "PermissionDenied", "belongs to the tenant vision, bob to speech")
    assert service.store.get(job_id).stop_requested == ""
    assert service.ask("POST", f"/v1/jobs/{job_id}/stop", "root", json={}).json()["stop_requested"] == "drain"
    said(service.ask("POST", "/v1/nodes/n/forgive", "ann"), 403, "PermissionDenied", "needs the role admin")
    said(service.ask("GET", "/v1/audit", "ann"), 403, "PermissionDenied", "needs the role admin")
    said(service.ask("POST", "/v1/nodes/n/forgive", "root"), 422, "UserError", "no node is named 'n'")
    assert service.ask("GET", "/v1/user", "eve").json() == {"name": "eve", "tenant": "vision", "role": "viewer"}


def test_an_admin_adds_lists_renews_and_revokes_users(service, caplog):
    caplog.set_level(logging.DEBUG)
    added = service.ask("POST", "/v1/users", "root", json={"name": "new", "role": "viewer"})
    assert (added.status_code, added.json()["user"], added.headers["cache-control"]) == (201, "new", "no-store")
    first = added.json()["token"]
    assert service.ask("GET", "/v1/user", first).json() == {"name": "new", "tenant": "new", "role": "viewer"}
    listed = {user["name"]: user for user in service.ask("GET", "/v1/users", "root").json()["users"]}
    assert (listed["new"]["role"], listed["new"]["revoked_s"], set(listed)) == ("viewer", None, {"ann", "bob", "eve", "new", "root"})
    second = service.ask("POST", "/v1/users/new/renew", "root").json()["token"]
    assert (service.ask("GET", "/v1/user", first).status_code, service.ask("GET", "/v1/user", second).status_code) == (401, 200)
    assert service.ask("POST", "/v1/users/new/revoke", "root").json() == {"user": "new", "revoked": True}
    assert service.ask("GET", "/v1/user", second).status_code == 401
    told = service.ask("GET", "/v1/audit", "root").json()["entries"]
    assert [(entry["user"], entry["action"], entry["subject"], entry["detail"]) for entry in told] == [
        ("root", "user add", "new", "tenant new, role viewer"), ("root", "user renew", "new", ""), ("root", "user revoke", "new", ""),
    ]  # fmt: skip
    assert not [token for token in (first, second, service.tokens["root"]) if token in caplog.text + json.dumps(told) + json.dumps(listed)]


@pytest.mark.parametrize(("body", "words"), [
    ({"name": "ann"}, "already a user named ann: `orchestrator user renew ann`"), ({"name": "a/b"}, "'a/b' cannot be"),
    ({"name": "x", "role": "amdin"}, "role=amdin is not possible: allowed is viewer, user, admin. Did you mean 'admin'?"),
    ({"name": "x", "tenant": "A B"}, "tenant"), ({"name": "x", "token": "mine"}, "token"),
])  # fmt: skip
def test_a_user_who_cannot_be_is_refused_and_nothing_is_written(service, body, words):
    refused = service.ask("POST", "/v1/users", "root", json=body)
    assert refused.status_code == 422 and words in refused.json()["message"], refused.text
    assert len(service.users.all()) == 4 and service.ask("GET", "/v1/audit", "root").json()["entries"] == []
    said(service.ask("POST", "/v1/users/anm/renew", "root"), 422, "UserError", "no user is named 'anm'", "Did you mean 'ann'?")


def test_names_are_short_and_what_the_audit_log_keeps_of_a_refusal_too(service):
    for method, path in (("POST", "/v1/users"), ("PUT", "/v1/policy")):
        said(service.ask(method, path, "root", json={"name": "n" * 65}), 422, "ConfigError", "name: ", "64 characters")
    long = to_dict(dataclasses.replace(SPEC, workload=dataclasses.replace(SPEC.workload, name="n" * 100_000)))
    said(service.ask("POST", "/v1/jobs", "eve", json={"spec": long}), 403, "PermissionDenied")
    (entry,) = service.ask("GET", "/v1/audit", "root").json()["entries"]
    assert entry["subject"] == "n" * (LONGEST - 1) + "…"


def test_users_are_for_admins(service):
    for method, path in (("GET", "/v1/users"), ("POST", "/v1/users"), ("POST", "/v1/users/ann/renew"), ("POST", "/v1/users/ann/revoke")):
        said(service.ask(method, path, "ann", json={"name": "new"}), 403, "PermissionDenied", "needs the role admin")
    told = service.ask("GET", "/v1/audit", "root").json()["entries"]
    assert [entry["action"] for entry in told] == [f"refused user {verb}" for verb in ("list", "add", "renew", "revoke")]
    opened = Service(Home(service.home.root / "open"), open_reads=True)
    for path in ("/v1/users", "/v1/audit"):
        said(opened.ask("GET", path, ""), 403, "PermissionDenied", "needs the role admin")
    assert opened.ask("GET", "/v1/audit", "root").json()["entries"] == []


def test_the_last_admin_is_not_revoked_over_http_but_beside_the_files(service):
    refused = service.ask("POST", "/v1/users/root/revoke", "root")
    said(refused, 409, "StateError", "root is the last admin", "user add NAME --role admin", "beside the server")
    assert service.ask("GET", "/v1/audit", "root").json()["entries"][-1]["action"] == "refused user revoke"
    other = service.ask("POST", "/v1/users", "root", json={"name": "other", "role": "admin"}).json()["token"]
    assert service.ask("POST", "/v1/users/root/revoke", "root").status_code == 200
    said(service.ask("POST", "/v1/users/other/revoke", other), 409, "StateError", "other is the last admin")
    Client(service.home).users.revoke("other")
    assert service.ask("GET", "/v1/user", other).status_code == 401


def test_reads_need_a_token_unless_they_are_open_and_then_only_under_a_name_of_this_machine(tmp_path):
    closed, opened = Service(Home(tmp_path / "a")), Service(Home(tmp_path / "b"), open_reads=True)
    for path in ("/v1/jobs", "/v1/jobs/x", "/v1/jobs/x/events", "/v1/jobs/x/logs", "/v1/nodes", "/v1/cluster", "/metrics", "/v1/user"):
        said(closed.ask("GET", path, ""), 401, "AuthenticationError", "a token is needed")
        assert opened.ask("GET", path, "").status_code in (200, 404)
        assert opened.http.get(path, headers={"Host": "evil.example"}).status_code == 400
    said(opened.ask("GET", "/v1/audit", ""), 403, "PermissionDenied")
    for name in ("X-Forwarded-For", "Forwarded", "Via"):  # through a proxy on this machine
        said(opened.http.get("/v1/jobs", headers={name: "x"}), 401, "AuthenticationError", "a token is needed")
        assert opened.http.get("/v1/jobs", headers={name: "x", "Authorization": f"Bearer {opened.tokens['eve']}"}).status_code == 200
    with pytest.raises(ConfigError, match=r"--open-reads with --host 0\.0\.0\.0 would show the jobs to the network"):
        ApiServer("0.0.0.0", 0, open_reads=True)


# following


def test_events_come_in_parts_from_any_number_on(service):
    job_id = service.submit()
    service.store.tell_waiting([], [Event(kind=EventKind.WARNING, job_id=job_id, time_s=float(n), message=str(n)) for n in range(5)])
    first = service.ask("GET", f"/v1/jobs/{job_id}/events?limit=4").json()
    rest = service.ask("GET", f"/v1/jobs/{job_id}/events?after={first['next']}").json()
    assert [event["seq"] for event in first["events"] + rest["events"]] == [1, 2, 3, 4, 5, 6]
    assert (first["ended"], rest["ended"]) == (False, False)
    nothing = service.ask("GET", f"/v1/jobs/{job_id}/events?after={rest['next']}&wait_s=0.05").json()
    assert nothing == {"events": [], "next": 6, "ended": False}
    service.end(job_id)
    assert service.ask("GET", f"/v1/jobs/{job_id}/events?after=6&wait_s=60").json()["ended"] is True


def put_output(store, keys: JobKeys, epoch: int, rank: int, offset: int, content: bytes) -> None:
    store.put(f"{keys.logs}{epoch:08d}/{rank:05d}/{offset:012d}", content)


def test_lines_come_once_over_restarts_and_from_the_offset_of_any_page(service):
    job_id = service.submit()
    store, keys = open_store(service.store.get(job_id).spec.storage), JobKeys(job_id)
    put_output(store, keys, 1, 0, 0, b"zero: a\nzero: b")
    first = service.ask("GET", f"/v1/jobs/{job_id}/logs").json()
    put_output(store, keys, 1, 0, 15, b"\n")
    put_output(store, keys, 1, 1, 0, "one: é\n".encode())
    put_output(store, keys, 2, 0, 0, b"zero: again")
    second = service.ask("GET", f"/v1/jobs/{job_id}/logs?after={first['next']}").json()
    service.end(job_id)
    third = service.ask("GET", f"/v1/jobs/{job_id}/logs?after={second['next']}&wait_s=60").json()
    texts = [[(line["rank"], line["epoch"], line["text"]) for line in page["lines"]] for page in (first, second, third)]
    assert texts == [[(0, 1, "zero: a")], [(1, 1, "one: é"), (0, 1, "zero: b")], [(0, 2, "zero: again")]]
    assert [page["ended"] for page in (first, second, third)] == [False, False, True]
    only = service.ask("GET", f"/v1/jobs/{job_id}/logs?rank=1").json()
    assert [line["text"] for line in only["lines"]] == ["one: é"]
    said(service.ask("GET", f"/v1/jobs/{job_id}/logs?after=nonsense"), 422, "UserError", "nonsense")


def test_artifacts(service):
    job_id = service.submit()
    open_store(service.store.get(job_id).spec.storage).put(JobKeys(job_id).artifact("sample.txt"), b"text")
    assert service.ask("GET", f"/v1/jobs/{job_id}/artifacts/sample.txt").content == b"text"
    assert service.ask("GET", f"/v1/jobs/{job_id}/artifacts/other.txt").status_code == 404
    assert service.ask("GET", f"/v1/jobs/{job_id}/artifacts/..%2F..%2Fsecret").status_code in (404, 422)


def test_what_a_job_that_has_ended_keeps_is_removed_by_its_tenant(service):
    job_id = service.submit()
    store, keys = open_store(service.store.get(job_id).spec.storage), JobKeys(job_id)
    for key in (keys.commit(1, 5), keys.artifact("sample.txt"), f"{keys.root}ckpt/seg", f"{JobKeys(job_id + '-more').root}ckpt/seg"):
        store.put(key, b"x")
    said(service.ask("POST", f"/v1/jobs/{job_id}/remove", json={}), 409, "StateError", "is queued: it can be removed when it has ended")
    service.end(job_id)
    said(service.ask("POST", f"/v1/jobs/{job_id}/remove", "bob", json={}), 403, "PermissionDenied", "belongs to the tenant vision")
    store.put(keys.pin(1, 5), b"{}")
    said(service.ask("POST", f"/v1/jobs/{job_id}/remove", json={}), 409, "StateError", "pinned checkpoints (step 5)", "checkpoint unpin")
    store.delete(keys.pin(1, 5))
    assert len(list(store.list(keys.root))) == 3 and service.store.events(job_id)[-1][1].kind is not EventKind.REMOVED
    for objects in (3, 0):
        assert service.ask("POST", f"/v1/jobs/{job_id}/remove", json={}).json() == {"id": job_id, "objects": objects, "done": True}
    assert [info.key for info in store.list("jobs/")] == [f"{JobKeys(job_id + '-more').root}ckpt/seg"]
    assert [event.kind for _, event in service.store.events(job_id)].count(EventKind.REMOVED) == 1
    said(service.ask("POST", f"/v1/jobs/{job_id}/resume", json={}), 409, "StateError", "was removed", "Submit it anew")
    actions = [(entry["user"], entry["action"]) for entry in service.ask("GET", "/v1/audit", "root").json()["entries"]]
    assert actions.count(("ann", "remove")) == 1 and ("bob", "refused remove") in actions


def test_a_removal_goes_on_where_it_was_cut_off(service):
    job_id = service.submit()
    store, keys = open_store(service.store.get(job_id).spec.storage), JobKeys(job_id)
    for number in range(3):
        store.put(keys.commit(1, number), b"x")
        store.put(keys.artifact(f"{number}"), b"x")
    service.end(job_id)
    part = Client(service.home).remove(job_id, {}, within_s=0.0)
    assert (part.objects, part.done) == (3, False) and list(store.list(keys.commits)) == [], "the commits go first"
    rest = Client(service.home).remove(job_id, {})
    assert (rest.objects, rest.done, list(store.list(keys.root))) == (3, True, [])


def test_lists_are_filtered_and_paged(service):
    ids = [service.submit("ann" if number % 2 else "bob") for number in range(5)]
    service.end(ids[0])

    def listed(query: str) -> list[str]:
        return [job["id"] for job in service.ask("GET", f"/v1/jobs?{query}").json()["jobs"]]

    assert listed("") == ids
    assert listed("state=queued") == ids[1:]
    assert listed("tenant=vision") == listed("user=ann") == ids[1::2]
    page = service.ask("GET", "/v1/jobs?limit=2").json()
    assert [job["id"] for job in page["jobs"]] == ids[:2]
    assert listed(f"after={page['next']}&limit=2") == ids[2:4]
    assert service.ask("GET", f"/v1/jobs?after={ids[2]}").json()["next"] == ""
    assert service.ask("GET", "/v1/jobs?view=full").json()["jobs"][0] == service.ask("GET", f"/v1/jobs/{ids[0]}").json()
    said(service.ask("GET", "/v1/jobs?state=lost"), 422, "ConfigError", "state")


# the cluster and the control plane


def test_nodes_cluster_and_metrics(service):
    service.store.set_meta(CLUSTER, ClusterView(nodes=(Node(id="n", host="h", cpu_units=4 * CPU_UNITS, gpus=8),)).to_dict())
    service.store.put(dataclasses.replace(service.store.get(service.submit()), id="x", state=JobState.RUNNING, placement=(("n", 2),)))
    service.pulse.beat(0.02)
    service.pulse.beat(20.0)
    assert service.ask("GET", "/v1/nodes").json()["nodes"][0]["host"] == "h"
    cluster = service.ask("GET", "/v1/cluster").json()
    assert (cluster["gpus"], cluster["workers_placed"], cluster["jobs"]) == (8, 2, {"queued": 1, "running": 1})
    text = service.ask("GET", "/metrics").text
    for line in (
        'orchestrator_jobs{state="running",tenant="vision"} 1.0', "orchestrator_gpus 8.0",
        'orchestrator_controller_round_seconds_bucket{le="0.025"} 1.0', 'orchestrator_controller_round_seconds_bucket{le="+Inf"} 2.0',
    ):  # fmt: skip
        assert line in text, text


def test_of_jobs_that_have_ended_nothing_but_their_number_is_read(service):
    waits = service.store.get(service.submit())
    runs = dataclasses.replace(waits, id="runs", state=JobState.RUNNING, placement=(("n", 2),))
    ended = [job_to_dict(dataclasses.replace(waits, id=f"ended-{number}", state=JobState.FAILED)) for number in range(1000)]
    with writing(service.store.engine) as connection:
        connection.execute(tables.jobs.insert(), [job_to_dict(runs), *ended])
        connection.execute(sa.text("UPDATE jobs SET spec = '?', progress = '?', placement = '?' WHERE state = 'failed'"))
    text = service.ask("GET", "/metrics").text
    for line in (
        'orchestrator_jobs{state="failed",tenant="vision"} 1000.0', 'orchestrator_jobs{state="queued",tenant="vision"} 1.0',
        'orchestrator_workers_placed{state="running",tenant="vision"} 2.0',
    ):  # fmt: skip
        assert line in text, text
    assert float(re.search(r"^orchestrator_longest_wait_seconds (.*)$", text, re.MULTILINE)[1]) > 0
    cluster = service.ask("GET", "/v1/cluster").json()
    assert (cluster["workers_placed"], cluster["jobs"]) == (2, {"queued": 1, "running": 1, "failed": 1000})


def test_health_says_when_the_loop_hangs(tmp_path):
    clock = [0.0]
    pulse, store = Pulse(lambda: clock[0]), JobStore(tmp_path / "jobs.db")
    http = TestClient(create_app(Home(tmp_path), store, pulse))
    clock[0] = START_S - 1
    assert http.get("/v1/health").json()["ok"] is True
    pulse.beat(0.1)
    pulse.ready = True
    assert (http.get("/v1/health").status_code, http.get("/v1/health").json()["ready"]) == (200, True)
    clock[0] += 31
    assert http.get("/v1/health").status_code == 503
    store.close()


def test_a_service_without_its_store_is_alive_as_long_as_its_loop_goes_round(tmp_path):
    clock = [0.0]
    pulse, store = Pulse(lambda: clock[0]), JobStore(tmp_path / "db" / "jobs.db")
    http = TestClient(create_app(Home(tmp_path), store, pulse))
    store.close()
    (tmp_path / "db").rename(tmp_path / "away")
    pulse.beat(0.1)
    assert (http.get("/v1/health").status_code, http.get("/v1/alive").status_code) == (503, 200)
    clock[0] += SILENCE_S
    alive = http.get("/v1/alive")
    assert (alive.status_code, alive.json()) == (503, {"ok": False, "controller_silent_s": SILENCE_S})


def test_every_error_has_a_status_and_none_of_a_user_is_the_servers():
    for cls in vars(errors).values():
        if isinstance(cls, type) and issubclass(cls, errors.OrchestratorError):
            assert status_of(cls("m")) < 500 or not issubclass(cls, errors.UserError | errors.StateError) or cls is errors.StoreUnavailable
    assert STATUS[errors.OrchestratorError] == 500


def test_a_port_that_is_taken_is_told(tmp_path):
    first = ApiServer("127.0.0.1", 0)
    with pytest.raises(ClusterError, match=r"cannot listen at 127\.0\.0\.1:\d+: Address already in use"):
        ApiServer("127.0.0.1", int(first.url.rpartition(":")[2]))
    first.close()


def test_the_jobs_of_a_server_are_those_of_its_home(service):
    job_id = service.submit()
    assert Client(service.home).job(job_id).progress == Progress()
