"""The verbs over HTTP are those on the machine: the same answers, the same errors, the same output of the command line."""

from __future__ import annotations

import dataclasses
import inspect
import json
import re
from pathlib import Path

import httpx2
import pytest

from orchestrator.cli import _verbs, main
from orchestrator.client import Client
from orchestrator.client.connection import Local, Verbs, connect, found_token, remove_all
from orchestrator.client.reader import ServerReader
from orchestrator.client.remote import Remote
from orchestrator.code.cache import unpack
from orchestrator.code.package import archive_of, claim, read_package
from orchestrator.control.api.server import ApiServer
from orchestrator.control.client import CLUSTER
from orchestrator.control.pulse import Pulse
from orchestrator.control.records.store import JobStore
from orchestrator.control.records.users import Role, Users
from orchestrator.control.scheduler import ClusterView
from orchestrator.control.scheduler.model import CPU_UNITS, Node
from orchestrator.errors import (
    AuthenticationError,
    ClusterError,
    ConfigError,
    JobNotFound,
    LayoutError,
    PermissionDenied,
    StateError,
    UserError,
)
from orchestrator.events import Event, EventKind
from orchestrator.job import Job, JobState, Progress
from orchestrator.paths import Home, JobKeys, code_key
from orchestrator.spec import DataSpec, JobSpec, ModelSpec, StorageSpec, TrainingSpec, WorkloadSpec
from orchestrator.storage import open_store

SPEC = JobSpec(
    workload=WorkloadSpec(name="tiny", entrypoint="tiny:Tiny"),
    model=ModelSpec(name="m"),
    data=DataSpec(name="d"),
    training=TrainingSpec(max_steps=10, global_batch_size=8, micro_batch_size=2),
)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """(home, store, URL of the API on it, an admin's token)."""
    home = Home(tmp_path_factory.mktemp("home"))
    store, served = JobStore(home.jobs_db), JobStore(home.jobs_db)
    server = ApiServer("127.0.0.1", 0)
    server.start(home, served, Pulse())
    yield home, store, server.url, Users(store.engine).add("root", "", "admin")
    server.stop()


@pytest.fixture(params=["here", "over HTTP"])
def verbs(request, place) -> Verbs:
    home, _, url, token = place
    return connect(home) if request.param == "here" else connect(home, url, token)


@pytest.fixture
def store(place) -> JobStore:
    return place[1]


def prepared(store: JobStore, home: Home) -> str:
    """A job that has succeeded, with output, events and a node that spoke against."""
    job = Local(home).submit(dataclasses.replace(SPEC, name="done"), {})
    store.set_meta(CLUSTER, ClusterView(nodes=(Node(id="n", host="n1", cpu_units=64 * CPU_UNITS, gpus=8),)).to_dict())
    fields = {"incident": "HANG", "node": "n1"}
    store.tell_waiting([], [Event(kind=EventKind.HANG, job_id=job.id, time_s=1e10, message="hangs", fields=fields)])
    job = store.update(job, state=JobState.STARTING, progress=Progress(step=10, max_steps=10, loss=0.5))
    store.update(job, state=JobState.SUCCEEDED, ended_s=job.submitted_s + 5, reason="trained 10 steps")
    objects = open_store(job.spec.storage)
    objects.put(f"{JobKeys(job.id).logs}00000001/00000/000000000000-1795946645000", b"zero: a\nzero: b\n")
    objects.put(f"{JobKeys(job.id).logs}00000001/00001/000000000000-1795946646000", b"one: a")
    objects.put(JobKeys(job.id).artifact("sample.txt"), b"text")
    return job.id


def test_a_job_from_its_submission_to_its_resumption(verbs, store):
    job = verbs.submit(SPEC, {"KEY": "value"})
    assert verbs.job(job.id[:-1]) == job == store.get(job.id)
    assert json.loads(verbs.home.secrets(job.id).read_text()) == {"KEY": "value"}
    assert [event.kind for _, event in verbs.events(job.id)] == [EventKind.SUBMITTED]
    assert verbs.set_priority(job.id, 5).spec.scheduling.priority == 5
    assert job.id in [row.job_id for row in verbs.queue()]
    assert verbs.explain(job.id).state == "queued"
    assert verbs.request_stop(job.id, "now").stop_requested == "now"
    ended = store.update(store.update(store.get(job.id), state=JobState.STARTING), state=JobState.CANCELLED, ended_s=1.0)
    again = verbs.resume(ended.id, dataclasses.replace(ended.spec, training=dataclasses.replace(SPEC.training, max_steps=20)), {})
    assert (again.state, again.run, again.spec.training.max_steps) == (JobState.QUEUED, 2, 20)


def test_the_same_errors_with_the_same_words(verbs):
    with pytest.raises(JobNotFound, match="no job is named 'nothing'"):
        verbs.job("nothing")
    with pytest.raises(LayoutError, match=r"training\.micro_batch_size=3 does not divide"):
        verbs.submit(dataclasses.replace(SPEC, training=dataclasses.replace(SPEC.training, micro_batch_size=3)), {})
    with pytest.raises(UserError, match="no node is named 'n7'"):
        verbs.forgive("n7")
    job = verbs.submit(SPEC, {})
    with pytest.raises(StateError, match="its settings can be changed only after it has ended"):
        verbs.resume(job.id, dataclasses.replace(SPEC, name="other"), {})


def test_lists_logs_artifacts_nodes_and_policy(verbs, store, place):
    job_id = prepared(store, place[0])
    found, total = verbs.summaries([JobState.SUCCEEDED], limit=1)
    assert [job.id for job in found] == [job_id] and total >= 1
    assert verbs.summaries()[0] == Local(place[0]).summaries()[0]
    assert {job.id for job in verbs.jobs()} == {job.id for job in store.all()}
    page = verbs.next_logs(job_id, "", None, 60.0, offsets=True)
    assert [(line.rank, line.text) for line in page.lines] == [(0, "zero: a"), (0, "zero: b"), (1, "one: a")] and page.ended
    assert [line.text for line in verbs.next_logs(job_id, page.lines[0].offset, None, 0.0).lines] == ["zero: b", "one: a"]
    assert [line.offset for line in ServerReader(verbs, job_id).lines(True)] == [line.offset for line in page.lines]
    assert [line.offset for line in ServerReader(verbs, job_id, offsets=False).lines(True)] == ["", "", ""]
    told, ended = verbs.next_events(job_id, 1, 60.0)
    assert [event.kind for _, event in told] == [EventKind.HANG] and ended
    assert verbs.artifact(verbs.job(job_id), "sample.txt") == b"text"
    view, incidents = verbs.nodes()
    assert [node.host for node in view.nodes] == ["n1"] and incidents[-1].job_id == job_id
    assert verbs.forgive("n1") >= 1
    chosen = verbs.policy()
    assert verbs.set_policy("mine", {"mode": "batch"}).policy.mode == "batch"
    assert verbs.set_policy(chosen.name, chosen.settings) == chosen
    assert verbs.audit()[-1].action == "policy"


def test_users(verbs, place, tmp_path):
    name = f"ann-{type(verbs).__name__.lower()}"
    token = verbs.users.add(name, role="viewer")
    shown = {user.name: user for user in verbs.users.all()}
    assert (shown[name].tenant, shown[name].role, shown[name].revoked_s) == (name, Role.VIEWER, None) and "root" in shown
    with pytest.raises(UserError, match=f"already a user named {name}"):
        verbs.users.add(name)
    with pytest.raises(UserError, match=r"no user is named 'a b\?#'"):
        verbs.users.revoke("a b?#")
    with pytest.raises(PermissionDenied, match="needs the role admin"):
        connect(Home(tmp_path), place[2], token).users.all()
    renewed = verbs.users.renew(name)
    assert connect(Home(tmp_path), place[2], renewed).jobs() == Local(place[0]).jobs()
    verbs.users.revoke(name)
    for old in (token, renewed):
        with pytest.raises(AuthenticationError, match="not known, or was revoked"):
            connect(Home(tmp_path), place[2], old).jobs()
    told = [entry for entry in verbs.audit(limit=10_000) if entry.subject == name]
    assert [entry.action for entry in told] == ["user add", "user renew", "user revoke"]
    assert not [secret for secret in (token, renewed) if secret in repr(verbs.audit(limit=10_000))]


def test_what_a_job_keeps_is_removed(verbs, store, place):
    job_id = prepared(store, place[0])
    assert remove_all(verbs, job_id, {}) == 3 and remove_all(verbs, job_id, {}) == 0
    objects = open_store(verbs.job(job_id).spec.storage)
    assert list(objects.list(JobKeys(job_id).root)) == []
    with pytest.raises(StateError, match="was removed: nothing is left"):
        verbs.resume(job_id, None, {})


def test_the_working_directory_of_a_workload_of_ones_own_goes_to_the_server_once(verbs, tmp_path):
    marker = type(verbs).__name__
    (tmp_path / "mine.py").write_text(f"WHERE = '{marker}'\n")
    package = read_package(tmp_path, 1e6)
    assert verbs.keep_code(package, SPEC.storage, {}) is True
    assert verbs.keep_code(package, SPEC.storage, {}) is False
    folder = unpack(open_store(StorageSpec(url=verbs.home.store.as_uri())), package.content_hash, tmp_path / "cache")
    assert (folder / "mine.py").read_text() == f"WHERE = '{marker}'\n"
    named = StorageSpec(url=(tmp_path / "named").as_uri())
    assert verbs.keep_code(package, named, {}) is True and claim(open_store(named), package.content_hash)


@pytest.fixture
def code(tmp_path, monkeypatch) -> Path:
    """The working directory of a workload of one's own."""
    folder = tmp_path / "code"
    folder.mkdir()
    (folder / "mine.py").write_text(f"class Mine: ...  # {tmp_path}\n")
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def ended(place, store, code, monkeypatch) -> Job:
    """Submitted from that folder through the server of the commands that follow; it has failed."""
    monkeypatch.setenv("ORCHESTRATOR_HOME", str(code.parent / "elsewhere"))
    monkeypatch.setenv("ORCHESTRATOR_SERVER", place[2])
    monkeypatch.setenv("ORCHESTRATOR_TOKEN", place[3])
    job = Client(place[2], place[3]).submit(["workload=custom", "workload.entrypoint=mine:Mine"])
    return store.update(store.update(job, state=JobState.STARTING), state=JobState.FAILED, ended_s=1.0)


@pytest.mark.parametrize("seen", [True, False])
def test_resume_through_a_server_takes_the_working_directory_as_it_is_now(seen, ended, code, place, store, tmp_path, capsys):
    objects = open_store(ended.spec.storage)
    if not seen:  # from this machine
        objects.delete(code_key(ended.spec.workload.package))
    (code / "mine.py").write_text(f"class Mine: ...  # mended {tmp_path}\n")
    assert main(["resume", ended.id, "--detach", "training.max_steps=7"]) == 0
    assert f"packaged 1 files of {code}" in capsys.readouterr().out
    spec = store.get(ended.id).spec
    assert spec.training.max_steps == 7 and spec.storage == ended.spec.storage
    assert "mended" in (unpack(objects, spec.workload.package, tmp_path / "cache") / "mine.py").read_text()
    kept = [entry.subject for entry in Local(place[0]).audit(limit=10_000) if entry.action == "keep code"]
    assert (spec.workload.package in kept) is not seen


def test_resume_through_a_server_tries_the_bucket_first(ended, code, store, monkeypatch, capsys):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "a")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "b")
    bucket = StorageSpec(url="s3://bucket/x", endpoint_url="http://127.0.0.1:9", max_attempts=1, connect_timeout_s=1.0)
    store.update(ended, spec=dataclasses.replace(ended.spec, storage=bucket))
    assert main(["resume", ended.id, "--detach"]) == 2
    assert "127.0.0.1:9" in capsys.readouterr().err and store.get(ended.id).state is JobState.FAILED


def test_resume_through_a_server_with_the_code_as_it_was(ended, code, store, capsys):
    (code / "mine.py").write_text("class Mine: ...  # another\n")
    assert main(["resume", ended.id, "--detach", "--same-code"]) == 0
    assert store.get(ended.id).spec == ended.spec and "packaged" not in capsys.readouterr().out


def test_resume_through_a_server_from_elsewhere_says_that_the_code_stays(ended, code, store, monkeypatch, capsys):
    monkeypatch.chdir(code.parent)
    code.rename(code.parent / "moved")
    assert main(["resume", ended.id, "--detach"]) == 0
    assert f"its code stays as it was submitted: {code} is not here" in capsys.readouterr().out
    assert store.get(ended.id).spec == ended.spec


def test_what_is_no_package_is_refused(place, tmp_path):
    (tmp_path / "mine.py").write_text("1\n")
    archive, others = archive_of(read_package(tmp_path, 1e6)), "0" * 64
    http = httpx2.Client(base_url=place[2], headers={"Authorization": f"Bearer {place[3]}"})
    wrong = {archive: "holds other files than its hash", b"PK no zip": "this is no package", archive[:-30]: "this is no package"}
    for content, words in wrong.items():
        refused = http.put(f"/v1/code/{others}", content=content)
        assert refused.status_code == 422 and words in refused.json()["message"], refused.text
    assert http.put(f"/v1/code/{others}", content=archive, headers={"Authorization": ""}).status_code == 401
    assert http.put("/v1/code/short", content=archive).status_code == 422


VERBS = [
    ("list",), ("list", "--state", "succeeded", "--json"), ("status", "JOB"), ("status", "JOB", "--json"), ("events", "JOB"),
    ("events", "JOB", "--json"), ("logs", "JOB"), ("logs", "JOB", "--json"), ("logs", "JOB", "--tail", "1"), ("logs", "JOB", "--rank", "0"),
    ("logs", "-f", "JOB"), ("wait", "JOB"), ("queue", "--json"), ("explain", "JOB"), ("nodes",), ("nodes", "--json"), ("policy",),
    ("audit",), ("audit", "--json"), ("user", "list"), ("user", "list", "--json"), ("user", "add", "root"),
    ("user", "renew", "nobody"), ("remove", "JOB"), ("audit", "--after", "100000"),
    ("cancel", "JOB"), ("status", "none"), ("cancel", "nothing", "--json"),
]  # fmt: skip


def test_the_command_line_says_the_same_through_a_server(place, store, tmp_path, capsys, monkeypatch):
    home, _, url, token = place
    job_id = prepared(store, home)
    own = Home(tmp_path / "elsewhere")
    monkeypatch.setattr("time.time", lambda: 1e10 + 100)

    def said(words, where: Home, server: str) -> tuple[int, str]:
        monkeypatch.setenv("ORCHESTRATOR_HOME", str(where.root))
        monkeypatch.setenv("ORCHESTRATOR_SERVER", server)
        status = main([job_id if word == "JOB" else word for word in words])
        shown = capsys.readouterr()
        text = shown.out + shown.err
        return status, text.replace(str(own.root), "HOME").replace(str(home.root), "HOME")

    monkeypatch.setenv("ORCHESTRATOR_TOKEN", token)
    for words in VERBS:
        assert said(words, own, url) == said(words, home, ""), words


def test_a_user_of_the_command_line_through_a_server(place, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("ORCHESTRATOR_HOME", str(tmp_path / "elsewhere"))
    monkeypatch.setenv("ORCHESTRATOR_SERVER", place[2])
    monkeypatch.setenv("ORCHESTRATOR_TOKEN", place[3])
    file = tmp_path / "of-carl" / "token"
    assert main(["user", "add", "carl", "--tenant", "vision", "--role", "admin", "--token-file", str(file)]) == 0
    assert file.stat().st_mode & 0o777 == 0o600 and not (tmp_path / "elsewhere").exists()
    assert main(["user", "renew", "carl", "--json"]) == 0
    token = json.loads(capsys.readouterr().out.splitlines()[-1])["token"]
    monkeypatch.setenv("ORCHESTRATOR_TOKEN", file.read_text().strip())
    assert main(["user", "list"]) == 2 and "was revoked" in capsys.readouterr().err
    monkeypatch.setenv("ORCHESTRATOR_TOKEN", token)
    assert main(["user", "revoke", "carl"]) == 0 and "carl's token is revoked" in capsys.readouterr().out
    assert main(["audit"]) == 2
    monkeypatch.setenv("ORCHESTRATOR_TOKEN", place[3])
    assert main(["user", "add", "carla", "--token-file", str(tmp_path)]) == 2 and "allowed is a file" in capsys.readouterr().err
    assert "carla" not in [user.name for user in Users(JobStore(place[0].jobs_db).engine).all()]


METHODS = {
    "submit": ["submit"], "resume": ["resume"], "list": ["jobs"], "status": ["job", "events"], "logs": ["logs", "follow_logs"],
    "events": ["events", "follow_events"], "wait": ["wait"], "queue": ["queue"], "explain": ["explain"], "nodes": ["nodes", "forgive"],
    "priority": ["set_priority"], "policy": ["policy", "set_policy"], "user": ["users"], "audit": ["audit"], "cancel": ["cancel"],
    "remove": ["remove"],
}  # fmt: skip
WITHOUT = {
    "train": "`submit` and `wait`, with the cluster started before and stopped after it",
    "up": "starts processes on this machine", "down": "stops processes on this machine", "serve": "becomes a process on this machine",
    "dashboard": "becomes a process on this machine", "doctor": "about this machine", "store": "about the database on this machine",
    "prune": "about the stores as they are seen from this machine", "checkpoint": "about an object store: `orchestrator.checkpoints`",
    "simulate": "asks nothing of a control plane: `orchestrator.simulation`", "completion": "for shells", "version": "`importlib.metadata`",
}  # fmt: skip
"""Verb -> why a program has no method for it."""


def test_a_program_has_every_verb_of_the_command_line_that_is_not_for_a_machine_or_a_shell():
    assert {*METHODS} | {*WITHOUT} == {*_verbs()} and not {*METHODS} & {*WITHOUT}
    offered = {name for name, _ in inspect.getmembers(Client) if not name.startswith("_")}
    assert {method for methods in METHODS.values() for method in methods} | {"artifact"} == offered


@pytest.mark.parametrize("here", [True, False])
def test_a_program_asks_and_changes_what_the_command_line_does(here, place, store):
    client = Client(home=str(place[0].root)) if here else Client(place[2], place[3])
    job = client.submit(dataclasses.replace(SPEC, workload=WorkloadSpec(name="gpt", entrypoint="workloads.gpt:Gpt")))
    assert client.set_priority(job.id[:-1], 3).spec.scheduling.priority == 3
    assert job.id in [row.job_id for row in client.queue()]
    assert (client.explain(job.id[:-1]).job_id, client.explain(job.id).state) == (job.id, "queued")
    assert [found.id for found in client.jobs([JobState.QUEUED], limit=1)] == [job.id]
    assert {found.id for found in client.jobs()} == {found.id for found in store.all()}
    chosen = client.policy()
    assert client.set_policy("mine", {"mode": "batch"}).policy.mode == "batch"
    assert client.set_policy(chosen.name, chosen.settings) == chosen
    last = client.audit(limit=2)
    assert [entry.action for entry in last] == ["policy", "policy"] and client.audit(after=last[0].seq) == last[1:]


# connections


def test_a_server_that_is_not_there_or_is_another_is_told(tmp_path):
    home = Home(tmp_path)
    with pytest.raises(ClusterError, match=r"the server http://127\.0\.0\.1:9 does not answer"):
        connect(home, "http://127.0.0.1:9", "token").job("x")
    with pytest.raises(ConfigError, match="ftp://x is no server: allowed is http"):
        connect(home, "ftp://x", "token")

    for url in ("http://host:port", "http://[::1"):
        with pytest.raises(ConfigError, match=rf"^{re.escape(url)} is no server: allowed is http://HOST:PORT .*Invalid port"):
            connect(home, url, "token")

    def proxy(request: httpx2.Request) -> httpx2.Response:
        return httpx2.Response(502 if request.url.path == "/v1/jobs/x" else 200, text="<html>nginx")

    remote = Remote(home, "http://x", "token", httpx2.MockTransport(proxy))
    with pytest.raises(ClusterError, match="answers 502"):
        remote.job("x")
    with pytest.raises(ClusterError, match="is no orchestrator"):
        remote.job("y")


class LosingAnswers(httpx2.BaseTransport):
    """The server gets the first requests, but nobody hears what it says."""

    def __init__(self, count: int) -> None:
        self._left, self._wire = count, httpx2.HTTPTransport()

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        response = self._wire.handle_request(request)
        if self._left:
            self._left -= 1
            raise httpx2.ReadError("cut off")
        return response


def test_a_submission_whose_answer_is_lost_makes_one_job(place, store):
    spec = dataclasses.replace(SPEC, name="once")
    job = Remote(place[0], place[2], place[3], LosingAnswers(2)).submit(spec, {})
    assert [found.id for found in store.all() if found.id.startswith("once-")] == [job.id]
    assert [entry.action for entry in Local(place[0]).audit(limit=10_000) if entry.subject == job.id] == ["submit"]
    with pytest.raises(StateError, match="already a job named"):
        Local(place[0]).submit(dataclasses.replace(spec, name="twice"), {"KEY": "another's"}, job.id)
    assert not place[0].secrets(job.id).exists()
    with pytest.raises(ConfigError, match=r"id=\.\./x is not possible"):
        Local(place[0]).submit(spec, {}, "../x")


def test_tokens_come_from_the_environment_or_a_private_file(tmp_path, monkeypatch):
    home = Home(tmp_path)
    for name in ("ORCHESTRATOR_TOKEN", "ORCHESTRATOR_TOKEN_FILE"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(AuthenticationError, match="no token for the server: set"):
        found_token(home)
    path: Path = home.api_token
    path.write_text("secret\n")
    path.chmod(0o644)
    with pytest.raises(ConfigError, match="can be read by others"):
        found_token(home)
    path.chmod(0o600)
    assert found_token(home) == "secret"
    monkeypatch.setenv("ORCHESTRATOR_TOKEN", "mine")
    assert found_token(home) == "mine"


@pytest.mark.parametrize("wrong", ["orc.ann.sec\nret", "orc.ann.sec\r\nret", "orc.änn.secret", "orc.ann sec-ret", "orc.ann.sec\x00ret"])
def test_what_cannot_be_a_token_is_refused_and_not_shown(wrong, tmp_path, monkeypatch):
    home = Home(tmp_path)
    home.api_token.write_text(f"{wrong}\n")
    home.api_token.chmod(0o600)
    for name in ("ORCHESTRATOR_TOKEN", "ORCHESTRATOR_TOKEN_FILE"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(AuthenticationError, match=f"^{home.api_token} is no token: allowed is one word") as in_file:
        connect(home, "http://127.0.0.1:9")
    with pytest.raises(AuthenticationError, match="what is given as the token is no token") as given:
        connect(home, "http://127.0.0.1:9", wrong)
    if "\x00" not in wrong:
        monkeypatch.setenv("ORCHESTRATOR_TOKEN", wrong)
        with pytest.raises(AuthenticationError, match=r"^\$ORCHESTRATOR_TOKEN is no token"):
            connect(home, "http://127.0.0.1:9")
    assert not [caught for caught in (in_file, given) if "ret" in str(caught.value)]


def test_the_end_of_the_line_is_no_part_of_a_token(place, tmp_path):
    assert Client(place[2], f"{place[3]}\n", str(tmp_path)).policy() == Local(place[0]).policy()


def test_who_follows_asks_again_with_the_same_question_after_a_lost_connection(tmp_path):
    asked: list[str] = []

    def flaky(request: httpx2.Request) -> httpx2.Response:
        asked.append(str(request.url.query, "ascii") if isinstance(request.url.query, bytes) else str(request.url.query))
        if len(asked) in (1, 3):
            raise httpx2.ReadError("cut off")
        number = len([query for query in asked if query]) // 2
        line = {"rank": 0, "epoch": 1, "time_s": 0.0, "text": f"line {number}"}
        return httpx2.Response(200, json={"lines": [line], "next": f"at{number}", "ended": number == 2})

    client, pauses = Client(home=str(tmp_path)), []
    client._verbs = Remote(Home(tmp_path), "http://x", "token", httpx2.MockTransport(flaky))
    client._sleep = pauses.append
    assert [line.text for line in client.follow_logs("job")] == ["line 1", "line 2"]
    assert asked[0] == asked[1] and asked[2] == asked[3] and "after=at1" in asked[2]
    assert pauses == [0.1, 0.1]
