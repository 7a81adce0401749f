"""Claim: to compare the replicas every 50 steps costs a job at most 0.3 % of its time.

    python benchmarks/replica_check.py [--blocks 30]

Two workers train the GPT of `make train`, with ZeRO as shipped and without (there all optimizer state is compared too). After each block of
steps the check of `guard.replica_check_steps` is timed alone, from a barrier on, on the state that the steps have left: the cost is the
check's seconds over those of 50 steps of the block before it.
"""

from __future__ import annotations

import argparse
import statistics
from functools import partial
from pathlib import Path
from typing import Any

from loop_throughput import STEPS, Loops, be_rank, rows_of
from record import publish, table

BAR = 0.003
EVERY = 50


def rank_main(rank: int, world: int, folder: str, blocks: int, port: int, results: Any, *, overrides: tuple[str, ...]) -> None:
    from orchestrator.runtime.guard import check_replicas

    be_rank(rank, world, port)
    loops = Loops(rank, world, Path(folder), *overrides)

    def check() -> None:
        check_replicas(0, loops.engine.replicated())

    for row in loops.rounds(blocks, [check]):
        if rank == 0:
            step_s, check_s = row["ours"] / STEPS, row["check"]
            results.put({"step_ms": step_s * 1000, "check_ms": check_s * 1000, "cost": check_s / (step_s * EVERY)})


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--blocks", type=int, default=30)
    blocks = parser.parse_args().blocks
    lines, costs = [], {}
    for name, overrides in {"as shipped": (), "ZeRO 0": ("parallelism.zero_stage=0",)}.items():
        rows = rows_of(partial(rank_main, overrides=overrides), 2, blocks)
        low, median, high = statistics.quantiles([row["cost"] for row in rows], n=4)
        times = [f"{statistics.median(row[key] for row in rows):.1f}" for key in ("step_ms", "check_ms")]
        costs[name] = round(median, 5)
        lines.append((name, *times, f"{median:.3%}", f"{low:.3%}", f"{high:.3%}"))
    return publish(
        "replica_check", f"To compare the replicas every {EVERY} steps costs at most 0.3 % of a job's time", ours=costs, bar=BAR,
        holds=max(costs.values()) <= BAR, n=blocks, rows=table(("layout", "step, ms", "check, ms", "cost", "25 %", "75 %"), lines),
    )  # fmt: skip


if __name__ == "__main__":
    raise SystemExit(main())
