"""Claim: the API accepts 200 jobs per second durably, and lists 10,000 of them in 0.3 s.

python benchmarks/api.py [--jobs 2000] [--listed 10000] [--clients 8] [--rounds 5] [--db URL]

The server is a process of its own (the API without a controller beside it); the clients are threads of one other process, each with one
connection that it keeps. A job counts as accepted when its answer is there: the store has said by then that it is on disk.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
from record import publish, table

from orchestrator.control.records.store import JobStore
from orchestrator.control.records.users import Users
from orchestrator.job import Job, JobState, Progress
from orchestrator.paths import Home
from orchestrator.spec import DataSpec, JobSpec, ModelSpec, TrainingSpec, WorkloadSpec, to_dict

ACCEPTED_BAR, LISTED_BAR_S = 200.0, 0.3
SPEC = JobSpec(
    workload=WorkloadSpec(name="tiny", entrypoint="tiny:Tiny"),
    model=ModelSpec(name="m"),
    data=DataSpec(name="d"),
    training=TrainingSpec(max_steps=10, global_batch_size=8, micro_batch_size=2),
)
SERVER = """
import sys
from pathlib import Path
from orchestrator.control.api.server import ApiServer
from orchestrator.control.pulse import Pulse
from orchestrator.control.records.store import JobStore
from orchestrator.paths import Home
home = Home(Path(sys.argv[1]))
server = ApiServer("127.0.0.1", 0)
server.start(home, JobStore(sys.argv[2]), Pulse())
print(server.url, flush=True)
sys.stdin.read()
server.stop()
"""


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--jobs", type=int, default=2000)
    parser.add_argument("--listed", type=int, default=10_000)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--db", default="")
    asked = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="orc-api-"))
    home = Home(folder)
    where = asked.db or str(home.jobs_db)
    store = JobStore(where)
    token = Users(store.engine).add("bench", "bench", "user")
    load = os.getloadavg()[0]
    server = subprocess.Popen([sys.executable, "-c", SERVER, str(folder), where], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert server.stdin is not None and server.stdout is not None
    url, headers = server.stdout.readline().strip(), {"Authorization": f"Bearer {token}"}
    try:
        rates, latencies = accepted(url, headers, asked.jobs, asked.clients, asked.rounds)
        assert store.count() == asked.jobs * asked.rounds + asked.clients, "what was accepted is in the store"
        _fill(store, asked.listed - store.count())
        listed = [timed(lambda: len(_get(url, headers, asked.listed)["jobs"])) for _ in range(asked.rounds + 1)]
        assert all(count == asked.listed for _, count in listed)
    finally:
        server.stdin.close()
        server.wait(timeout=30)
    first_s, again_s = listed[0][0], [seconds for seconds, _ in listed[1:]]
    rate, list_s = statistics.median(rates), statistics.median(again_s)
    rows = table(("what", "median", "min", "max", "bar"), [
        ("jobs accepted per second", f"{rate:.0f}", f"{min(rates):.0f}", f"{max(rates):.0f}", f"{ACCEPTED_BAR:.0f}"),
        ("time of a submission, ms", *(f"{1e3 * of(latencies):.1f}" for of in (statistics.median, min, max)), ""),
        (f"list of {asked.listed} jobs, s", f"{list_s:.3f}", f"{min(again_s):.3f}", f"{max(again_s):.3f}", LISTED_BAR_S),
        (f"the first list of {asked.listed} jobs, s", f"{first_s:.3f}", "", "", ""),
    ])  # fmt: skip
    kind = store.engine.dialect.name
    remark = f"{kind}; {asked.clients} clients; load average {load:.1f} before, {os.getloadavg()[0]:.1f} after, on {os.cpu_count()} cores."
    return publish(
        f"api_{kind}", "The API accepts 200 jobs per second durably, and lists 10,000 in 0.3 s",
        ours={"jobs_per_s": round(rate), "list_s": round(list_s, 3)}, bar={"jobs_per_s": ACCEPTED_BAR, "list_s": LISTED_BAR_S},
        holds=rate >= ACCEPTED_BAR and list_s <= LISTED_BAR_S, rows=[*rows, "", remark], n=asked.rounds, jobs=asked.jobs,
        first_list_s=round(first_s, 3), load=round(load, 1),
    )  # fmt: skip


def accepted(url: str, headers: dict[str, str], jobs: int, clients: int, rounds: int) -> tuple[list[float], list[float]]:
    """(jobs per second of each round, seconds of each submission)."""
    body = json.dumps({"spec": to_dict(SPEC)}).encode()
    kept, latencies = threading.local(), []

    def submit(_: int) -> None:
        if not hasattr(kept, "http"):
            kept.http = httpx2.Client(base_url=url, headers={**headers, "Content-Type": "application/json"}, timeout=60)
        began = time.perf_counter()
        response = kept.http.post("/v1/jobs", content=body)
        latencies.append(time.perf_counter() - began)
        assert response.status_code == 201, response.text

    rates = []
    with ThreadPoolExecutor(clients) as pool:
        list(pool.map(submit, range(clients)))  # connections are made, code is loaded
        for _ in range(rounds):
            began = time.perf_counter()
            list(pool.map(submit, range(jobs)))
            rates.append(jobs / (time.perf_counter() - began))
    return rates, latencies


def timed(act: Callable[[], int]) -> tuple[float, int]:
    began = time.perf_counter()
    found = act()
    return time.perf_counter() - began, found


def _get(url: str, headers: dict[str, str], limit: int) -> dict[str, Any]:
    with httpx2.Client(base_url=url, headers=headers, timeout=60) as http:
        return http.get("/v1/jobs", params={"limit": limit}).json()


def _fill(store: JobStore, missing: int) -> None:
    """Jobs that have ended, with the figures of a real one."""
    now = time.time()
    for number in range(missing):
        progress = Progress(step=10, max_steps=10, loss=0.5, phase="", ledger={"seconds": dict.fromkeys(map(str, range(12)), 1.5)})
        store.put(Job(id=f"old-{number}", spec=SPEC, state=JobState.SUCCEEDED, submitted_s=now, ended_s=now, progress=progress))


if __name__ == "__main__":
    raise SystemExit(main())
