"""Claim: no other setting of the shipped policies misses fewer goals than the one they are shipped with.

    python benchmarks/scheduler_settings.py [--jobs 1200] [--only itp04 plain ...]

Goals, traces and what they are measured against are those of `scheduler_goals.py`, without the speed of the simulator, which settings
change little. A setting is changed in what is named, and in nothing else; the page says which goals each one misses, and by how much.
"""

from __future__ import annotations

import argparse
import multiprocessing
from pathlib import Path

from record import ROOT, publish, table
from scheduler_goals import GENERATED_NODES, REAL_NODES, SEED, Goal, elastic_gain, figures, goals, policy, rigid, short

from orchestrator.simulation.generate import RECIPES, generate
from orchestrator.simulation.trace import read_trace

SHIPPED = ""
VARIANTS = {
    "preemptive": (
        "levels=[36000,360000]", "levels=[144000,1440000]", "levels=[7200,72000,720000]", "levels=[72000]", "min_run_s=900",
        "min_run_s=3600", "max_doublings=0", "max_doublings=4", "turn_s=3600", "turn_s=14400", "gain_factor=1", "gain_factor=4",
        "max_reservations=4", "max_reservations=16", "reserve_after_s=14400",
    ),
    "batch": (
        "max_wait_s=64800", "max_wait_s=43200", "max_wait_s=28800", "max_gang_wait_s=28800", "max_gang_wait_s=21600",
        "max_gang_wait_s=14400", "max_wait_s=64800 max_gang_wait_s=28800", "reserve_after_s=7200", "reserve_after_s=3600",
        "max_reservations=2", "max_reservations=4",
    ),
}  # fmt: skip
Row = tuple[str, str, list[Goal]]
"""(policy, setting, its goals on one trace)."""


def measured(name: str, path: Path, nodes: int, jobs: int) -> list[Row]:
    """Every setting on one trace."""
    real = name == "itp04"
    trace = read_trace(path) if real else generate(name, jobs=jobs, gpus=GENERATED_NODES * 8, seed=SEED)
    nodes = nodes if real else GENERATED_NODES
    known = figures(trace, nodes, ("easy", "srtf", "batch", "preemptive"))
    found: list[Row] = []
    for mode, settings in VARIANTS.items():
        for setting in (SHIPPED, *settings):
            chosen = {mode: policy(mode, *setting.split())}
            mine = known | figures(trace, nodes, (mode,), chosen) if setting else known
            met = [goal for goal in goals(name, mine, len(trace)) if goal.what.startswith(f"{mode}:") and "simulated" not in goal.what]
            if name == "elastic" and mode == "preemptive":
                met.append(elastic_gain(mine, figures(rigid(trace), nodes, (mode,), chosen)))
            found.append((mode, setting, met))
    return found


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--jobs", type=int, default=1_200, help="of each generated trace")
    parser.add_argument("--only", nargs="*", choices=("itp04", *RECIPES), default=["itp04", *RECIPES])
    asked = parser.parse_args()
    trace = ROOT / "benchmarks" / "traces" / "itp04.csv"
    with multiprocessing.get_context("spawn").Pool(maxtasksperchild=1) as pool:
        found = pool.starmap(measured, [(name, trace, REAL_NODES, asked.jobs) for name in asked.only], chunksize=1)
    missed: dict[tuple[str, str], list[Goal]] = {}
    for mode, setting, met in (row for rows in found for row in rows):
        missed.setdefault((mode, setting), []).extend(goal for goal in met if not goal.holds)
    rows = [(mode, setting or "as shipped", str(len(goals)), _named(goals)) for (mode, setting), goals in missed.items()]
    shipped = {mode: len(missed[mode, SHIPPED]) for mode in VARIANTS}
    best = {mode: min(len(goals) for (other, _), goals in missed.items() if other == mode) for mode in VARIANTS}
    return publish(
        "scheduler_settings", "No other setting of the shipped policies misses fewer goals than the one they are shipped with",
        ours=shipped, bar=best, holds=shipped == best, rows=table(("policy", "setting", "missed", "which, and by what"), rows), seed=SEED,
        jobs=asked.jobs, traces=asked.only,
    )  # fmt: skip


def _named(missed: list[Goal]) -> str:
    return "; ".join(f"{goal.trace}, {goal.what.partition(': ')[2]} {short(goal.value)} (<= {short(goal.bar)})" for goal in missed)


if __name__ == "__main__":
    raise SystemExit(main())
