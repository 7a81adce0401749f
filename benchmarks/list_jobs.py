"""Claim: `list` is there in 0.3 s with 10,000 jobs in the store, and the whole command counts, Python's start too.

python benchmarks/list_jobs.py [--jobs 10000] [--n 15]
"""

from __future__ import annotations

import argparse
import statistics
import time

from record import publish, table

from orchestrator.config import load_job_spec
from orchestrator.control.records.store import JobStore
from orchestrator.job import Job, JobState, Progress

from harness import Sandbox  # isort: skip  - `record` puts it on the path

BAR_S = 0.3
COMMANDS = (("--help",), ("list",), ("list", "--json"), ("list", "--state", "queued", "--limit", "20"), ("list", "--limit", "0"))


def fill(box: Sandbox, count: int) -> None:
    """Nine of ten have ended; the rest waits or trains."""
    spec, store = load_job_spec(["workload=gpt"]), JobStore(box.home.jobs_db)
    states = [*[JobState.SUCCEEDED] * 7, JobState.FAILED, JobState.CANCELLED]
    for number in range(count):
        state = states[number % 9] if number % 10 else (JobState.QUEUED if number % 30 else JobState.RUNNING)
        progress = Progress(phase="training", step=number % 800, max_steps=800, loss=1.5, eta_s=60.0)
        job = Job(id=f"gpt-{number:06d}", spec=spec, state=state, submitted_s=1e9 + number, reason="waits for 2 CPUs", progress=progress)
        store.put(job)


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--jobs", type=int, default=10_000)
    parser.add_argument("--n", type=int, default=15)
    asked = parser.parse_args()
    box = Sandbox()
    taken: dict[tuple[str, ...], list[float]] = {words: [] for words in COMMANDS}
    read: list[float] = []
    try:
        fill(box, asked.jobs)
        store = JobStore(box.home.jobs_db)
        for _ in range(asked.n):
            began = time.monotonic()
            store.summaries(limit=50)
            store.count()
            read.append(time.monotonic() - began)
            for words in COMMANDS:
                began = time.monotonic()
                code, output = box.run(*words)
                taken[words].append(time.monotonic() - began)
                assert code == 0, output
    finally:
        box.close()
    listed, stored = statistics.median(taken[("list",)]), statistics.median(read)
    rows = [(f"`orchestrator {' '.join(words)}`", *map(_shown, (statistics.median(s), min(s), max(s)))) for words, s in taken.items()]
    rows.append(("read from the store, in a process that is there", *map(_shown, (stored, min(read), max(read)))))
    return publish(
        "list_jobs", "A list of 10,000 jobs is there at once", ours=round(listed, 2), bar=BAR_S, holds=listed <= BAR_S, jobs=asked.jobs,
        n=asked.n, rows=table(("command", "median s", "min", "max"), rows),
    )  # fmt: skip


def _shown(seconds: float) -> str:
    return f"{seconds:.3f}"


if __name__ == "__main__":
    raise SystemExit(main())
