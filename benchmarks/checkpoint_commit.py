"""Claim: a checkpoint is committed within a second of its last byte, and a job's saves hardly hold it up.

    python benchmarks/checkpoint_commit.py [--saves 30]

A real job of two workers (the GPT of `make train`) saves every 5 steps into a folder. The time is from
the last writer's word that its bytes are durable to the commit object, read from the job's own journal; the stall is what the ranks report.
"""

from __future__ import annotations

import argparse
import statistics

from record import publish, table

from harness import Sandbox  # isort: skip  - `record` puts it on the path
from orchestrator.job import JobState
from orchestrator.tracking.journal import read_file

BAR_S = 1.0
EVERY = 5


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--saves", type=int, default=30)
    asked = parser.parse_args()
    steps = asked.saves * EVERY
    box = Sandbox()
    try:
        job_id = box.submit(
            "workload=gpt", f"training.max_steps={steps}", "training.eval_interval_steps=0", "training.eval_samples=64",
            f"checkpoint.interval_steps={EVERY}", "training.log_interval_steps=1", "resources.num_workers=2", "tracking.enabled=false",
        )  # fmt: skip
        job = box.wait_ended(job_id, timeout_s=600)
        assert job.state is JobState.SUCCEEDED, box.describe()
        records = list(read_file(box.home.node(job_id) / "journal.jsonl"))
    finally:
        box.close()
    commits = [record for record in records if record["kind"] == "event" and record["event"] == "committed"]
    metrics = [record["values"] for record in records if record["kind"] == "metrics"]
    shown = {"last byte to commit": [x["commit_s"] for x in commits], "upload of the slowest writer": [x["upload_s"] for x in commits]}
    stall_s = metrics[-1]["checkpoint_stall_s"] / asked.saves
    worst = max(shown["last byte to commit"])
    rows = [(name, *(f"{value:.3f}" for value in (statistics.median(x), min(x), max(x)))) for name, x in shown.items()]
    rows.append(("training held up by a save, mean", f"{stall_s:.3f}", "", ""))
    return publish(
        "checkpoint_commit", "A checkpoint is committed within a second of its last byte", ours=round(worst, 3), bar=BAR_S,
        holds=worst <= BAR_S, n=len(commits), megabytes=round(commits[-1]["num_bytes"] / 1e6, 1), stall_s=round(stall_s, 4),
        rows=table(("seconds", "median", "least", "most"), rows),
    )  # fmt: skip


if __name__ == "__main__":
    raise SystemExit(main())
