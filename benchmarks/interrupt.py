"""Claim: Ctrl-C in `train` saves a checkpoint, stops all that it started and says how to go on, within 10 s.

    python benchmarks/interrupt.py [--n 10] [--seed 1]

The GPT of `make train` is interrupted after a random number of steps. Each time the newest committed step must be the last one trained,
and no process may be left.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time

from record import publish, table

from harness import Sandbox, interrupt  # isort: skip  - `record` puts it on the path

BAR_S = 10.0


def interrupted(box: Sandbox, step: int) -> tuple[float, int]:
    """(seconds from Ctrl-C to the end of the command, the step that is committed)."""
    known = {job.id for job in box.jobs()}
    process = box.start("train", "workload=gpt")
    job_id = box.wait_until(lambda: next((job.id for job in box.jobs() if job.id not in known), ""), "the job")
    box.wait_step(job_id, step)
    began = time.monotonic()
    interrupt(process)
    output, _ = process.communicate(timeout=120)
    seconds = time.monotonic() - began
    job = box.job(job_id)
    assert job.progress.committed_step == job.progress.step >= step and f"resume {job_id}" in output, output
    assert not box.processes(), [process.cmdline() for process in box.processes()]
    return seconds, job.progress.step


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--n", type=int, default=10)
    parser.add_argument("--seed", type=int, default=1)
    asked = parser.parse_args()
    rng = random.Random(asked.seed)
    box = Sandbox()
    rows = []
    try:
        for _ in range(asked.n):
            rows.append(interrupted(box, rng.randrange(1, 60)))
            print(f"{rows[-1][0]:.1f} s, committed step {rows[-1][1]}", flush=True)
    finally:
        box.close()
    seconds = [row[0] for row in rows]
    return publish(
        "interrupt", "Ctrl-C in `train` saves, stops everything and says how to go on within 10 s", ours=round(max(seconds), 1), bar=BAR_S,
        holds=max(seconds) <= BAR_S, n=asked.n, seed=asked.seed, median_s=round(statistics.median(seconds), 1),
        rows=table(("committed step", "seconds"), [(step, f"{s:.1f}") for s, step in rows]),
    )  # fmt: skip


if __name__ == "__main__":
    raise SystemExit(main())
