"""Claim: the command line answers at once: `--help` in 0.5 s, and what cannot work is refused in a second.

python benchmarks/command_line.py [--n 15]
"""

from __future__ import annotations

import argparse
import statistics
import time

from record import publish, table

from harness import Sandbox  # isort: skip  - `record` puts it on the path

BARS_S = {
    ("--help",): 0.5,
    ("train", "training.max_step=5"): 1.0,
    ("train", "workload=gtp"): 1.0,
    ("train", "training.max_steps=four"): 1.0,
    ("train", "training.micro_batch_size=7"): 1.0,
}


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--n", type=int, default=15)
    asked = parser.parse_args()
    box = Sandbox()
    taken: dict[tuple[str, ...], list[float]] = {words: [] for words in BARS_S}
    try:
        for _ in range(asked.n):
            for words in BARS_S:
                began = time.monotonic()
                code, output = box.run(*words)
                taken[words].append(time.monotonic() - began)
                assert code == (0 if words == ("--help",) else 2), output
    finally:
        box.close()
    medians = {" ".join(words): statistics.median(seconds) for words, seconds in taken.items()}
    rows = [
        (f"`orchestrator {' '.join(words)}`", f"{statistics.median(s):.2f}", f"{min(s):.2f}", f"{max(s):.2f}", BARS_S[words])
        for words, s in taken.items()
    ]
    return publish(
        "command_line", "The command line answers at once", ours={name: round(seconds, 2) for name, seconds in medians.items()},
        bar={" ".join(words): bar for words, bar in BARS_S.items()}, n=asked.n,
        holds=all(statistics.median(seconds) <= BARS_S[words] for words, seconds in taken.items()),
        rows=table(("command", "median s", "min", "max", "bar"), rows),
    )  # fmt: skip


if __name__ == "__main__":
    raise SystemExit(main())
