"""Object stores and readers of logs are opened once for many requests."""

from __future__ import annotations

import dataclasses

import pytest
from starlette.testclient import TestClient

from orchestrator.control.api.app import create_app
from orchestrator.control.client import Client
from orchestrator.control.pulse import Pulse
from orchestrator.control.reading.opened import MAX_STORES, Opened
from orchestrator.control.records.store import JobStore
from orchestrator.errors import StorageUnavailable
from orchestrator.job import JobState
from orchestrator.paths import Home, JobKeys
from orchestrator.spec import DataSpec, JobSpec, ModelSpec, StorageSpec, TrainingSpec, WorkloadSpec
from orchestrator.storage import MemoryStore

SPEC = JobSpec(
    workload=WorkloadSpec(name="tiny", entrypoint="tiny:Tiny"),
    model=ModelSpec(name="m"),
    data=DataSpec(name="d"),
    training=TrainingSpec(max_steps=10, global_batch_size=8, micro_batch_size=2),
)
PIECES = 2000
"""So many that a reader lists them all only if it must."""


class CountingStore(MemoryStore):
    def __init__(self) -> None:
        super().__init__()
        self.listed: list[str] = []
        self.away = False

    def list(self, prefix):
        self.listed.append(prefix)
        if self.away:
            raise StorageUnavailable("no answer")
        return super().list(prefix)


class Place:
    """A job that runs and has printed `PIECES` lines, in a piece each."""

    def __init__(self, home: Home) -> None:
        self.objects, self.opened = CountingStore(), 0
        self.store = JobStore(home.jobs_db)
        self.client = Client(home, self.store, opened=Opened(self.open))
        job = self.client.submit(SPEC, {"K": "v"})
        self.job = self.store.update(self.store.update(job, state=JobState.STARTING), state=JobState.RUNNING)
        self.keys = JobKeys(job.id)
        self.objects.put(self.keys.lease(1), b"")
        for number in range(PIECES):
            self.print(number)

    def open(self, spec, environ):
        assert environ["K"] == "v"
        self.opened += 1
        return self.objects

    def print(self, number: int) -> None:
        self.objects.put(self.keys.log_piece(1, 0, 5 * number, 1000.0 + number), f"{number:04d}\n".encode())

    @property
    def whole_listings(self) -> int:
        return self.objects.listed.count(self.keys.logs)


@pytest.fixture
def place(tmp_path):
    made = Place(Home(tmp_path))
    yield made
    made.store.close()


def test_a_request_that_waits_and_the_one_after_it_open_one_store_and_list_all_pieces_once(tmp_path, place):
    app = create_app(Home(tmp_path), place.store, Pulse(), open_reads=True)
    app.state.shared = dataclasses.replace(app.state.shared, client=place.client)
    http = TestClient(app, base_url="http://127.0.0.1")
    path = f"/v1/jobs/{place.job.id}/logs"
    first = http.get(path).json()
    assert len(first["lines"]) == PIECES
    nothing = http.get(f"{path}?after={first['next']}&wait_s=1.2").json()
    assert (nothing["lines"], nothing["next"]) == ([], first["next"])
    place.print(PIECES)
    assert [line["text"] for line in http.get(f"{path}?after={nothing['next']}").json()["lines"]] == [f"{PIECES}"]
    assert (place.opened, place.whole_listings) == (1, 1)


def test_an_offset_is_gone_on_from_twice_and_after_an_error(place):
    first = place.client.logs(place.job)
    place.print(PIECES)
    for _ in range(2):  # the answer was lost, and is asked for again
        assert [line.text for line in place.client.logs(place.job, first.offset).lines] == [f"{PIECES}"]
    place.objects.away = True
    with pytest.raises(StorageUnavailable):
        place.client.logs(place.job, first.offset)
    place.objects.away = False
    assert [line.text for line in place.client.logs(place.job, first.offset).lines] == [f"{PIECES}"]


def test_a_store_is_opened_anew_for_other_settings_and_other_keys_and_the_oldest_are_let_go():
    made = []
    opened = Opened(lambda spec, environ: made.append(environ.get("K")) or MemoryStore())
    spec, other = StorageSpec(url="file:///a"), StorageSpec(url="file:///b")
    first = opened.store(spec, {"K": "1"})
    assert opened.store(spec, {"K": "1"}) is first
    assert opened.store(spec, {"K": "2"}) is not first and opened.store(other, {"K": "1"}) is not first
    for number in range(MAX_STORES):
        opened.store(spec, {"K": f"more {number}"})
    assert opened.store(spec, {"K": "1"}) is not first
    assert made == ["1", "2", "1", *(f"more {number}" for number in range(MAX_STORES)), "1"]
