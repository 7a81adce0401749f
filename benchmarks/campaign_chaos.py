"""Claim: a job that faults of many kinds befall at random points ends with the calm run's losses and weights, bit for bit.

    make campaign NAME=chaos N=500 SEED=1

N counts faults. Each job of the chaos mode has 1 to 20 of them, of kinds drawn by the seed, at steps and phases drawn by the job's own; two
workers, a tiny model, a local cluster. Its loss history and the hash of its weights and optimizer state are compared with those of a job
that nothing befell; at most 0.5 % of all worker-seconds may be in no bucket of the goodput ledger. A fault whose turn never came (a job
may end before) is not counted. Jobs that are done are kept under `build/` and not run again.
"""

from __future__ import annotations

import time
from collections import Counter
from typing import Any

from record import Kept, options, publish, table

from chaos_trials import WEIGHTS, Trials, drawn  # isort: skip  - `record` puts it on the path
from harness import Sandbox  # isort: skip

LEDGER_BAR = 0.005


def main() -> int:
    asked = options(500)
    kept = Kept("campaign-chaos", asked.seed)
    rows = kept.rows
    box, began = Sandbox(), time.monotonic()
    before = _faults(rows)
    try:
        trials = Trials(box)
        while (total := _faults(rows)) < asked.n:
            faults = drawn(asked.seed, len(rows), min(20, asked.n - total))
            kept.add({"number": len(rows), **trials.strike(1000 * asked.seed + len(rows), faults)})
            rate = 60 * (_faults(rows) - before) / (time.monotonic() - began)
            print(f"{_faults(rows):4d}/{asked.n} faults, {rate:.1f} a minute  {rows[-1]}", flush=True)
    finally:
        box.close()
    return _publish(rows, asked.n, asked.seed)


def _publish(rows: list[dict[str, Any]], asked: int, seed: int) -> int:
    tried, good = Counter[str](), Counter[str]()
    for row in rows:
        kinds = Counter(name.rpartition("-")[0] for name in row["done"])
        tried += kinds
        good += kinds if row["equal"] else Counter()
    equal = sum(row["equal"] for row in rows)
    worker_s = sum(row["worker_s"] for row in rows)
    unattributed = sum(row["unattributed_s"] for row in rows) / worker_s
    worst = max(row["unattributed_s"] / row["worker_s"] for row in rows)
    return publish(
        "chaos", "A job that 1 to 20 faults befall at random points ends with the losses and the state of the calm run, bit for bit",
        ours=good.total(), bar=asked, holds=equal == len(rows) and good.total() >= asked and unattributed <= LEDGER_BAR,
        seed=seed, n=tried.total(), jobs=len(rows),
        jobs_equal=equal, unattributed=round(unattributed, 6), not_come=sum(row["planned"] - len(row["done"]) for row in rows),
        rows=[
            *table(("fault", "done", "in jobs equal to the calm run"), [(kind, tried[kind], good[kind]) for kind in WEIGHTS]),
            "", f"{len(rows)} jobs, {equal} of them equal to the calm run; {sum(row['restarts'] for row in rows)} restarts. "
            f"Of {worker_s:.0f} worker-s {100 * unattributed:.4f} % are in no bucket of the ledger, {100 * worst:.4f} % of the worst.",
        ],
    )  # fmt: skip


def _faults(rows: list[dict[str, Any]]) -> int:
    return sum(len(row["done"]) for row in rows)


if __name__ == "__main__":
    raise SystemExit(main())
