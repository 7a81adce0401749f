"""Claim: once the machine is set up and the data set is prepared, `train` makes its first step within 20 s on two cores.

    python benchmarks/first_step.py [--n 5]

Nothing runs before each start: the time holds Ray's own start, the imports, the evaluation before training and the first step.
"""

from __future__ import annotations

import argparse
import re
import statistics
import time

from record import publish, table

from harness import Sandbox  # isort: skip  - `record` puts it on the path

BAR_S = 20.0
SETTINGS = ("workload=gpt", "training.max_steps=30", "training.log_interval_steps=1", "training.eval_interval_steps=0")
MARKS = {
    "first word": r"^gpt:", "cluster is up": r"is queued", "ranks are forked": r"^starting \d workers", "data are open": r"^loading data",
    "first step": r"^step \d+/",
}  # fmt: skip


def start(box: Sandbox) -> dict[str, float]:
    """Seconds from the command to each mark."""
    began = time.monotonic()
    process = box.start("train", *SETTINGS)
    seen: dict[str, float] = {}
    assert process.stdout is not None
    for line in process.stdout:
        for mark, pattern in MARKS.items():
            if mark not in seen and re.search(pattern, line):
                seen[mark] = time.monotonic() - began
    assert process.wait() == 0 and "first step" in seen, box.describe()
    return seen


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--n", type=int, default=5)
    asked = parser.parse_args()
    box = Sandbox()
    try:
        start(box)  # prepares the data set
        runs = []
        for number in range(asked.n):
            runs.append(start(box))
            print(number + 1, {mark: round(seconds, 1) for mark, seconds in runs[-1].items()}, flush=True)
    finally:
        box.close()
    first = [run["first step"] for run in runs]
    rows = []
    for mark in MARKS:
        seconds = [run[mark] for run in runs if mark in run]
        if seconds:
            rows.append((mark, f"{statistics.median(seconds):.1f}", f"{min(seconds):.1f}", f"{max(seconds):.1f}"))
    return publish(
        "first_step", "The second `make train` makes its first step within 20 s of the command", ours=round(max(first), 1), bar=BAR_S,
        holds=max(first) <= BAR_S, n=asked.n, median_s=round(statistics.median(first), 1),
        rows=table(("seconds from the command to", "median", "min", "max"), rows),
    )  # fmt: skip


if __name__ == "__main__":
    raise SystemExit(main())
