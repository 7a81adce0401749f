"""An object store that hangs stops nothing but what asks for it."""

from __future__ import annotations

import asyncio
import dataclasses
import threading

import httpx2
import pytest
from patience import LIMIT_S

from orchestrator.control.api.app import create_app
from orchestrator.control.api.turns import AT_ONCE, Turns
from orchestrator.control.client import Client
from orchestrator.control.pulse import Pulse
from orchestrator.control.reading.opened import MAX_ATTEMPTS, READ_TIMEOUT_S, Opened, impatient
from orchestrator.control.records.store import JobStore
from orchestrator.paths import Home
from orchestrator.spec import DataSpec, JobSpec, ModelSpec, StorageSpec, TrainingSpec, WorkloadSpec
from orchestrator.storage import MemoryStore

SPEC = JobSpec(
    workload=WorkloadSpec(name="tiny", entrypoint="tiny:Tiny"),
    model=ModelSpec(name="m"),
    data=DataSpec(name="d"),
    training=TrainingSpec(max_steps=10, global_batch_size=8, micro_batch_size=2),
)
NUM_THREADS = 40


class HangingStore(MemoryStore):
    """Nothing is read until it may go on."""

    def __init__(self) -> None:
        super().__init__()
        self.may_go_on = threading.Event()

    def get(self, key, start=0, length=None):
        self.may_go_on.wait(LIMIT_S)
        return b"text"

    def list(self, prefix):
        self.may_go_on.wait(LIMIT_S)
        return super().list(prefix)


@pytest.fixture
def store(tmp_path):
    made = JobStore(tmp_path / "jobs.db")
    yield made
    made.close()


def test_while_a_store_hangs_all_else_is_answered_and_who_asks_for_it_is_told(tmp_path, store):
    objects = HangingStore()
    app = create_app(Home(tmp_path), store, Pulse(), open_reads=True)
    client = Client(Home(tmp_path), store, opened=Opened(lambda spec, environ: objects))
    app.state.shared = dataclasses.replace(app.state.shared, client=client, turns=Turns(patience_s=0.2))
    job = f"/v1/jobs/{client.submit(SPEC, {}).id}"
    paths = [f"{job}/{what}" for what in ("artifacts/sample.txt", "tail", "curve", "logs")]

    async def ask_all() -> None:
        async with httpx2.AsyncClient(transport=httpx2.ASGITransport(app), base_url="http://127.0.0.1") as http:
            waiting = {asyncio.create_task(http.get(paths[number % len(paths)])) for number in range(NUM_THREADS + AT_ONCE)}
            async with asyncio.timeout(LIMIT_S):
                while len(waiting) > AT_ONCE:
                    refused, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                    answers = [task.result() for task in refused]
                    assert {answer.status_code for answer in answers} == {503}
                    assert all("Retry-After" in answer.headers for answer in answers)
                    assert all("ask again in a while" in answer.json()["message"] for answer in answers)
                assert [(await http.get(path)).status_code for path in ("/v1/health", "/v1/queue", job)] == [200] * 3
                objects.may_go_on.set()
                assert {answer.status_code for answer in await asyncio.gather(*waiting)} == {200}

    try:
        asyncio.run(ask_all())
    finally:
        objects.may_go_on.set()  # threads of a test that has failed


def test_a_store_is_given_up_within_seconds_where_somebody_waits_for_the_answer():
    asked = StorageSpec(url="s3://bucket/x", region="eu-west-1", read_timeout_s=600.0, max_attempts=20)
    assert impatient(asked) == dataclasses.replace(asked, read_timeout_s=READ_TIMEOUT_S, max_attempts=MAX_ATTEMPTS)
    quick = StorageSpec(url="s3://bucket/x", connect_timeout_s=1.0, read_timeout_s=2.0, max_attempts=1)
    assert impatient(quick) == quick
