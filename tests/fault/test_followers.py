"""Who follows a job over HTTP sees every line and event exactly once: through connections that break at any place, and over the end of a
server. A real server, a real store; what ranks print is put where their agents ship it, while it is read."""

from __future__ import annotations

import contextlib
import logging
import random
import socket
import threading
import time
from collections import defaultdict
from dataclasses import dataclass, field

import pytest
from patience import LIMIT_S, wait_until
from s3_proxy import Proxy, s3_proxy

from orchestrator.client import Client
from orchestrator.client.connection import connect
from orchestrator.client.patience import patiently
from orchestrator.client.reader import ServerReader
from orchestrator.control.api.server import ApiServer
from orchestrator.control.pulse import Pulse
from orchestrator.control.reading.logs import follow
from orchestrator.control.records.store import JobStore
from orchestrator.control.records.users import Users
from orchestrator.events import Event, EventKind
from orchestrator.job import JobState
from orchestrator.paths import Home, JobKeys
from orchestrator.ports import free_port
from orchestrator.spec import DataSpec, JobSpec, ModelSpec, TrainingSpec, WorkloadSpec
from orchestrator.storage import open_store

SPEC = JobSpec(
    workload=WorkloadSpec(name="tiny", entrypoint="tiny:Tiny"), model=ModelSpec(name="m"), data=DataSpec(name="d"),
    training=TrainingSpec(max_steps=10, global_batch_size=8, micro_batch_size=2),
)  # fmt: skip
DROPS = 50
LOSSES = ("no_answer", "lost_answer", "cut_answer", "503")
RANKS = 3


class Place:
    """A server on a home with a job that runs, and what its ranks print."""

    def __init__(self, home: Home, seed: int) -> None:
        self.home, self.random = home, random.Random(seed)
        self.store = JobStore(home.jobs_db)
        self.token = Users(self.store.engine).add("root", "ops", "admin")
        self.server = self.served(free_port())  # kept for those that come after it
        job = connect(home).submit(SPEC, {})
        self.store.update(self.store.update(job, state=JobState.STARTING), state=JobState.RUNNING)
        self.job_id, self.keys = job.id, JobKeys(job.id)
        self.objects = open_store(job.spec.storage)
        self.printed: dict[tuple[int, int], bytes] = defaultdict(bytes)
        """By (epoch, rank)."""
        self.epoch, self.time_s, self.count = 1, 1e9, 0
        self.last: tuple[int, int, int] = (1, 0, 0)
        """Epoch, rank and offset of the newest piece."""

    def served(self, port: int) -> ApiServer:
        server = ApiServer("127.0.0.1", port)
        server.start(self.home, JobStore(self.home.jobs_db), Pulse())
        return server

    @property
    def port(self) -> int:
        return int(self.server.url.rpartition(":")[2])

    def grow(self) -> None:
        """The ranks print some more, one line of it whole; now and then they begin again, or a piece is shipped once more and longer."""
        if self.random.random() < 0.05:
            self.epoch += 1
            self.objects.create(self.keys.lease(self.epoch), b"{}")
        for _ in range(self.random.randint(1, 3)):
            self._ship(*(self.last if self.random.random() < 0.1 else (self.epoch, self.random.randrange(RANKS), None)))
        events = [Event(kind=EventKind.WARNING, job_id=self.job_id, time_s=self.time_s, message=str(self.count))]
        self.store.tell_waiting([], events * self.random.randint(1, 3))

    def _ship(self, epoch: int, rank: int, offset: int | None) -> None:
        before = self.printed[epoch, rank]
        offset = len(before) if offset is None else offset
        self.printed[epoch, rank] += f"{self._words()}\n{self._words()}".encode() + self.random.choice((b"", b"\n"))
        self.time_s += 1
        self.objects.put(self.keys.log_piece(epoch, rank, offset, self.time_s), self.printed[epoch, rank][offset:])
        self.last = (epoch, rank, offset)

    def _words(self) -> str:
        self.count += 1
        return f"{self.count} é{'x' * self.random.choice((0, 10, 30_000))}"

    def end(self) -> None:
        self.store.update(self.store.get(self.job_id), state=JobState.SUCCEEDED, ended_s=1.0)

    def lines(self) -> dict[tuple[int, int], list[str]]:
        return {stream: text.decode().removesuffix("\n").split("\n") for stream, text in self.printed.items()}


@pytest.fixture(params=range(2))
def place(request, tmp_path):
    made = Place(Home(tmp_path / "home"), seed=request.param)
    yield made
    made.server.stop()
    made.store.close()


@dataclass
class Dropping(Proxy):
    """Before each request the job goes on; then most of them are lost on their way there or back, until `DROPS` were."""

    place: Place | None = None
    dropped: list[str] = field(default_factory=list)
    ended: bool = False

    def fault(self, method: str, query: dict[str, str]) -> str:
        assert self.place is not None
        with self.changed:
            if self.ended:
                return ""
            if len(self.dropped) == DROPS:
                self.place.end()
                self.ended = True
                return ""
            self.place.grow()
            kind = self.place.random.choice((*LOSSES, "closed_later", ""))
            self.dropped += [kind] if kind in LOSSES else []
            return kind


def by_client(client: Client, job_id: str):
    return client.follow_logs(job_id)


def by_command_line(client: Client, job_id: str):
    """As `logs -f` reads from a server, without its pauses."""
    verbs = client._verbs

    def ended() -> bool:
        return patiently(lambda: verbs.job(job_id), sleep=no_pause).state.terminal

    return follow(ServerReader(verbs, job_id), ended, lambda error: None, no_pause)


def no_pause(_seconds: float) -> None:
    pass


@pytest.mark.parametrize("reading", [by_client, by_command_line])
def test_a_follower_of_the_logs_is_dropped_fifty_times_and_sees_each_line_once(place, reading):
    with s3_proxy(place.server.url, proxy=Dropping(place=place)) as proxy:
        client = Client(proxy.endpoint, place.token, home=str(place.home.root / "elsewhere"), sleep=no_pause)
        seen: dict[tuple[int, int], list[str]] = defaultdict(list)
        for line in reading(client, place.job_id):
            seen[line.epoch, line.rank].append(line.text)
    assert len(proxy.dropped) == DROPS and set(proxy.dropped) == set(LOSSES)
    assert len(place.lines()) > RANKS and sum(map(len, place.lines().values())) > 4 * DROPS
    assert seen == place.lines()


def test_a_follower_of_the_events_is_dropped_fifty_times_and_sees_each_once(place):
    with s3_proxy(place.server.url, proxy=Dropping(place=place)) as proxy:
        client = Client(proxy.endpoint, place.token, home=str(place.home.root / "elsewhere"), sleep=no_pause)
        seen = list(client.follow_events(place.job_id))
    assert len(proxy.dropped) == DROPS and set(proxy.dropped) == set(LOSSES)
    assert len(seen) > DROPS and seen == place.store.events(place.job_id)


# the end of a server


def waiting(server: ApiServer) -> int:
    """How many requests wait for news."""
    return len(server._server._watch._waiting)


def test_who_waits_for_news_is_answered_when_the_server_stops_and_its_log_stays_quiet(place, caplog):
    caplog.set_level(logging.INFO)
    place.grow()
    remotes = [connect(place.home, place.server.url, place.token) for _ in range(2)]
    at = remotes[0].next_logs(place.job_id, "", None, 0.0).offset
    last = place.store.events(place.job_id)[-1][0]
    told: dict[str, object] = {}
    askers = [
        threading.Thread(target=lambda: told.update(logs=remotes[0].next_logs(place.job_id, at, None, 60.0))),
        threading.Thread(target=lambda: told.update(events=remotes[1].next_events(place.job_id, last, 60.0))),
    ]
    for asker in askers:
        asker.start()
    wait_until(lambda: waiting(place.server) == 2)
    place.server.stop()
    for asker in askers:
        asker.join(LIMIT_S)
    assert told["events"] == ([], False)
    assert (told["logs"].lines, told["logs"].offset, told["logs"].ended) == ((), at, False)
    assert [record.getMessage() for record in caplog.records if record.levelno > logging.INFO or record.exc_info] == []


def test_who_follows_goes_on_at_the_next_server(place):
    client = Client(place.server.url, place.token, home=str(place.home.root / "elsewhere"), sleep=lambda _: time.sleep(0.01))
    seen: dict[tuple[int, int], list[str]] = defaultdict(list)
    events: list[tuple[int, Event]] = []

    def read() -> None:
        for line in client.follow_logs(place.job_id):
            seen[line.epoch, line.rank].append(line.text)

    other = Client(place.server.url, place.token, home=str(place.home.root / "elsewhere"), sleep=lambda _: time.sleep(0.01))
    readers = [threading.Thread(target=read), threading.Thread(target=lambda: events.extend(other.follow_events(place.job_id)))]
    for reader in readers:
        reader.start()
    for _ in range(3):
        place.grow()
        wait_until(lambda: waiting(place.server) == 2)
        place.server.stop()
        place.grow()
        place.server = place.served(place.port)
    place.end()
    for reader in readers:
        reader.join(LIMIT_S)
    assert seen == place.lines() and events == place.store.events(place.job_id)


def test_a_request_that_cannot_be_answered_in_time_is_told_so_and_leaves_no_traceback(place, caplog):
    head = f"POST /v1/jobs HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {place.token}\r\nContent-Length: 10\r\n\r\n1"
    with contextlib.closing(socket.create_connection(("127.0.0.1", place.port))) as connection:
        connection.sendall(head.encode())  # and nine bytes that never come
        wait_until(lambda: place.server._server.server_state.tasks)
        place.server.stop()
        answer = b"".join(iter(lambda: connection.recv(1 << 16), b""))
    assert answer.startswith(b"HTTP/1.1 503") and b'"error": "ClusterError", "message": "the server stops; ask again"' in answer
    assert "the server stops before POST /v1/jobs is answered" in caplog.text
    assert not [record for record in caplog.records if record.exc_info]
