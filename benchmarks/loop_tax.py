"""Claim: what the loop does beside a step of DeepSpeed's takes at most 0.5 % of a step of the GPT of `make train`.

    python benchmarks/loop_tax.py [--blocks 300]

A step of that GPT takes some hundred milliseconds, of which the machine's drift is ten times as much as what is to be measured. What the
loop adds (clock, votes, figures, guards, learning rate) depends on how many micro batches a step has and not on how large they or the
model are, so it is measured with the tiny model and as many micro batches of one sample: blocks of steps of `ours` and of a bare DeepSpeed
loop in turn, in the same processes; the difference of each pair, in milliseconds for a step. Then steps of the large one are timed, for
the part of it that this is. What grows with a model has benchmarks of its own: the check of the replicas (`replica_check`) and the stall
of a save (`checkpoint_stall`). The interval is a bootstrap's over the pairs.
"""

from __future__ import annotations

import argparse
import random
import statistics
from functools import partial
from pathlib import Path
from typing import Any

from loop_throughput import STEPS, Loops, be_rank, rows_of
from record import publish, table

BAR = 0.005
RESAMPLES = 10_000
LARGE_BLOCKS = 10
SMALL = ("model=gpt-tiny", "training.micro_batch_size=1", "training.global_batch_size=6")
"""As many micro batches as in the configuration that is shipped, of half the samples."""


def rank_main(rank: int, world: int, folder: str, blocks: int, port: int, results: Any, *, overrides: tuple[str, ...]) -> None:
    be_rank(rank, world, port)
    loops = Loops(rank, world, Path(folder), *overrides)
    for row in loops.rounds(blocks, [loops.deepspeed]):
        if rank == 0:
            results.put({name: seconds / STEPS * 1000 for name, seconds in row.items()})


def interval(values: list[float], seed: int = 0) -> tuple[float, float]:
    """In which the median lies, by 95 % of the bootstrap's resamples."""
    rng = random.Random(seed)
    medians = sorted(statistics.median(rng.choices(values, k=len(values))) for _ in range(RESAMPLES))
    return medians[RESAMPLES // 40], medians[-RESAMPLES // 40]


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--blocks", type=int, default=300)
    blocks = parser.parse_args().blocks
    lines, taxes = [], {}
    for world in (1, 2):
        tiny = rows_of(partial(rank_main, overrides=SMALL), world, blocks)
        large = rows_of(partial(rank_main, overrides=()), world, LARGE_BLOCKS)
        more = [row["ours"] - row["deepspeed"] for row in tiny]
        step_ms, added = statistics.median(row["deepspeed"] for row in large), statistics.median(more)
        low, high = interval(more)
        taxes[world] = added / step_ms
        times = (statistics.median(row["deepspeed"] for row in tiny), added, low, high)
        lines.append((world, *(f"{value:.2f}" for value in times), f"{step_ms:.0f}", *(f"{ms / step_ms:.2%}" for ms in (added, low, high))))
        print(lines[-1], flush=True)
    return publish(
        "loop_tax", "What the loop does beside a step of DeepSpeed's takes at most 0.5 % of a step of the GPT of `make train`",
        ours={f"{world} worker{'s' * (world > 1)}": round(tax, 5) for world, tax in taxes.items()}, bar=BAR,
        holds=max(taxes.values()) <= BAR, n=blocks,
        rows=table(
            ("workers", "tiny step, ms", "added, ms", "2.5 %", "97.5 %", "large step, ms", "tax", "2.5 %", "97.5 %"), lines
        ),
    )  # fmt: skip


if __name__ == "__main__":
    raise SystemExit(main())
