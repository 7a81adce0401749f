"""The control plane as a service: jobs over HTTP, followed through lost connections, by users who may not do everything."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import threading

import httpx2
import pytest
from harness import ENDLESS, TESTS, TINY, Sandbox, kill, slowed
from patience import LIMIT_S, TRAINING_LIMIT_S

from orchestrator.client import Client
from orchestrator.control.rehearsal import PREFIX
from orchestrator.errors import ClusterError, PermissionDenied
from orchestrator.job import JobState
from orchestrator.paths import JobKeys
from orchestrator.ports import free_port
from orchestrator.storage import open_store

DROPS = 5


class Proxy:
    """Passes connections on to a server, and cuts one off in the middle of an answer when it is told to."""

    def __init__(self, port: int) -> None:
        self._target = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self.drops_left, self.dropped = 0, 0
        self._lock = threading.Lock()
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                caller, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._pass_on, args=(caller,), daemon=True).start()

    def _pass_on(self, caller: socket.socket) -> None:
        try:
            server = socket.create_connection(("127.0.0.1", self._target))
        except OSError:
            caller.close()
            return
        threading.Thread(target=_pump, args=(caller, server, lambda data: data), daemon=True).start()
        _pump(server, caller, self._cut)

    def _cut(self, data: bytes) -> bytes | None:
        """Half of an answer that has lines or events in it, and then no more."""
        with self._lock:
            if self.drops_left and (b'"text"' in data or b'"seq"' in data):
                self.drops_left, self.dropped = self.drops_left - 1, self.dropped + 1
                return None
        return data

    def close(self) -> None:
        self._listener.close()


def _pump(source: socket.socket, target: socket.socket, passed) -> None:
    try:
        while data := source.recv(1 << 16):
            whole = passed(data)
            target.sendall(data[: len(data) // 2] if whole is None else whole)
            if whole is None:
                break
    except OSError:
        pass  # the other side was cut off
    for end in (source, target):
        try:
            end.shutdown(socket.SHUT_RDWR)
        except OSError:
            end.close()


@pytest.fixture(scope="module")
def sandbox():
    box = Sandbox()
    yield box
    box.close()


@pytest.fixture(scope="module")
def service(sandbox):
    """(port, its process)."""
    port = free_port()
    command = [sys.executable, "-m", "orchestrator.cli", "serve", "--port", str(port), "--num-cpus", "2"]
    log = (sandbox.root / "serve.log").open("wb")
    process = subprocess.Popen(command, cwd=TESTS, env=sandbox.environment, stdout=log, stderr=log, start_new_session=True)
    sandbox.wait_until(lambda: _answers(port), "an answer of the API")
    yield port, process
    process.send_signal(signal.SIGTERM)
    process.wait(timeout=LIMIT_S)


def _answers(port: int) -> bool:
    try:
        return Client(f"http://127.0.0.1:{port}", "none").job("x") is None
    except ClusterError:
        return False
    except Exception:  # noqa: BLE001 - whatever it says, it answers
        return True


@pytest.fixture(scope="module")
def tokens(sandbox, service):
    found = {}
    for name, tenant in (("ann", "vision"), ("bob", "speech")):
        path = sandbox.root / f"{name}.token"
        code, output = sandbox.run("user", "add", name, "--tenant", tenant, "--token-file", str(path))
        assert code == 0, output
        found[name] = path.read_text().strip()
    return found


@pytest.fixture
def in_tests(monkeypatch):
    """Overrides are composed where the tests' workloads are."""
    monkeypatch.chdir(TESTS)


def test_a_job_is_followed_through_lost_connections_and_a_killed_server_with_each_line_once(
    sandbox, service, tokens, in_tests, tmp_path
):
    proxy = Proxy(service[0])
    client = Client(proxy.url, tokens["ann"], home=str(sandbox.root / "elsewhere"))
    all_dropped = tmp_path / "all-dropped"
    options = ("+workload.options.count=true", "training.max_steps=200", *slowed(all_dropped, steps=10))
    job = client.submit([*(text for text in TINY if "max_steps" not in text), *options])
    assert (job.user, job.tenant, job.spec.scheduling.tenant) == ("ann", "vision", "vision")
    lines, events = [], []
    proxy.drops_left = DROPS
    readers = [
        threading.Thread(target=lambda: lines.extend(client.follow_logs(job.id)), daemon=True),
        threading.Thread(target=lambda: events.extend(client.follow_events(job.id)), daemon=True),
    ]
    for reader in readers:
        reader.start()
    sandbox.wait_until(lambda: lines, "the first lines")
    kill(sandbox.victims("controller")[0])  # and the API with it; the keeper starts both again
    sandbox.wait_until(lambda: proxy.dropped == DROPS, "as many lost connections")
    all_dropped.touch()
    for reader in readers:
        reader.join(TRAINING_LIMIT_S)
    assert not any(reader.is_alive() for reader in readers), sandbox.describe()
    assert client.job(job.id).state is JobState.SUCCEEDED, sandbox.describe()
    printed = _printed(sandbox, job.id)
    assert sorted((line.rank, line.text) for line in lines) == sorted(printed)
    assert [text for _, text in printed].count("micro batch 600 of tiny") == 2
    assert [number for number, _ in events] == list(range(1, len(events) + 1))
    assert events == client.events(job.id) == sandbox.client.events(job.id)
    proxy.close()


def _printed(sandbox: Sandbox, job_id: str) -> list[tuple[int, str]]:
    """(rank, line) of all that the job's ranks have printed, from the pieces themselves."""
    store = open_store(sandbox.job(job_id).spec.storage)
    streams: dict[tuple[str, str], bytes] = {}
    for info in store.list(f"jobs/{job_id}/logs/"):
        epoch, rank = info.key.split("/")[3:5]
        streams[epoch, rank] = streams.get((epoch, rank), b"") + store.get(info.key)
    return [(int(rank), line) for (_, rank), text in streams.items() for line in text.decode().splitlines()]


def test_others_may_look_but_not_touch_and_the_owner_stops_it(sandbox, service, tokens, in_tests):
    url = f"http://127.0.0.1:{service[0]}"
    ann, bob = (Client(url, tokens[name], home=str(sandbox.root / "elsewhere")) for name in ("ann", "bob"))
    job = ann.submit([*(text for text in TINY if "max_steps" not in text), ENDLESS])
    assert bob.job(job.id).id == job.id
    with pytest.raises(PermissionDenied, match="belongs to the tenant vision, bob to speech"):
        bob.cancel(job.id)
    ann.cancel(job.id, now=True)
    assert ann.wait(job.id, timeout_s=LIMIT_S).state is JobState.CANCELLED
    code, output = sandbox.run("audit")
    assert code == 0 and "refused stop" in output and output.count(job.id) >= 3, output


def test_a_rehearsal_through_the_server_leaves_nothing_there_and_queues_the_job(sandbox, service, tokens, monkeypatch):
    mine = {"SERVER": f"http://127.0.0.1:{service[0]}", "TOKEN": tokens["ann"], "HOME": str(sandbox.root / "elsewhere")}
    for name, value in mine.items():
        monkeypatch.setitem(sandbox.environment, f"ORCHESTRATOR_{name}", value)
    code, output = sandbox.run("submit", "--rehearse", "--json", *TINY, ENDLESS)
    assert code == 0, output + sandbox.describe()
    job_id = json.loads(output.splitlines()[-1])["id"]
    assert output.count("  ok  ") == 4 and "not all removed" not in output, output
    rehearsal = next(job for job in sandbox.jobs() if job.id.startswith(PREFIX))
    assert (rehearsal.state, rehearsal.progress.step, rehearsal.tenant) == (JobState.SUCCEEDED, 2, "vision")
    assert list(sandbox.store(rehearsal.id).list(JobKeys(rehearsal.id).root)) == []
    code, output = sandbox.run("cancel", job_id, "--now")
    assert code == 0 and sandbox.wait_ended(job_id).state is JobState.CANCELLED, output
    code, output = sandbox.run("remove", job_id, "--yes")
    assert code == 0 and list(sandbox.store(job_id).list(JobKeys(job_id).root)) == [], output


def test_a_second_controller_of_the_same_store_leaves_at_once(sandbox, service, tmp_path):
    database = f"sqlite:///{sandbox.home.jobs_db}"
    address = sandbox.home.cluster_file.read_text().partition('"address": "')[2].partition('"')[0]
    command = [sys.executable, "-m", "orchestrator.control.serve", "--home", str(tmp_path), "--address", address]
    environment = {**sandbox.environment, "ORCHESTRATOR_DATABASE": database}
    second = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=LIMIT_S, check=False)
    assert second.returncode == 3 and "another controller serves this job store: pid" in second.stderr, second.stderr


def test_the_page_is_where_the_service_says(sandbox, service):
    said = (sandbox.root / "serve.log").read_text()
    page = f"http://127.0.0.1:{service[0]}/ui/"
    assert page in said, said
    response = httpx2.get(f"http://127.0.0.1:{service[0]}/", follow_redirects=True, timeout=LIMIT_S)
    assert (response.status_code, str(response.url)) == (200, page) and "<title>Queue" in response.text


def test_a_service_that_runs_already_and_a_port_that_is_taken_are_told(sandbox, service):
    code, output = sandbox.run("serve", "--port", str(service[0]))
    assert code == 1 and "runs already" in output, output
    code, output = sandbox.run("serve", "--home", str(sandbox.root / "other"), "--port", str(service[0]))
    assert code == 1 and "Address already in use" in output, output


