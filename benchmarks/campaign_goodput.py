"""Claim: over a campaign of killed jobs, at most 0.5 % of all worker-seconds are in no bucket of the goodput ledger.

    make campaign NAME=goodput N=24 SEED=1

The trials are those of `campaign_kills`, the calm job included; each job's ledger must close over the whole time from its submission to
its end. A tick of the progress clock, which the ledger is made from, is timed beside it: the least of seven rounds.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from record import Kept, options, publish, table

from campaign_kills import Campaign  # isort: skip  - `record` puts the harness on the path
from orchestrator.runtime.link import Phase, ProgressClock
from orchestrator.supervision.accounting import Bucket

BAR = 0.005
TICKS, ROUNDS = 200_000, 7


def tick_ns() -> float:
    """Of one tick, as a rank does them: the phase changes each time."""
    with tempfile.TemporaryDirectory() as folder:
        clock, least = ProgressClock(Path(folder) / "clock", create=True), float("inf")
        for _ in range(ROUNDS):
            began = time.perf_counter_ns()
            for _ in range(TICKS // 2):
                clock.tick(1, Phase.FORWARD)
                clock.tick(1, Phase.BACKWARD)
            least = min(least, (time.perf_counter_ns() - began) / TICKS)
    return least


class Ledgers(Campaign):
    def audit(self, number: int) -> dict[str, Any]:
        row = self.trial(number)
        ledger = self.box.ledger(self.box.jobs()[-1].id)
        return {**row, "worker_s": ledger.worker_s, "seconds": {bucket.value: passed for bucket, passed in ledger.seconds.items()}}


def main() -> int:
    asked = options(24)
    kept = Kept("campaign-goodput", asked.seed)
    rows = kept.rows
    campaign = Ledgers(asked.seed)
    try:
        for number in range(len(rows), asked.n):
            kept.add(campaign.audit(number))
            print(f"{number + 1:3d}/{asked.n}  {rows[-1]}", flush=True)
    finally:
        campaign.box.close()
    return report(rows[: asked.n], asked.seed)


def report(rows: Sequence[dict[str, Any]], seed: int) -> int:
    names = [bucket.value for bucket in Bucket]
    total, missing = sum(row["worker_s"] for row in rows), sum(row["seconds"]["unattributed"] for row in rows)
    worst = max(row["seconds"]["unattributed"] / row["worker_s"] for row in rows)
    equal, share, cost = sum(row["equal"] for row in rows), missing / total, tick_ns()
    said = f"{total:.0f} worker-seconds in all, of which {missing:.3f} in no bucket; {100 * worst:.4f} % of the worst job."
    return publish(
        "goodput", "Of the worker-seconds of jobs that are killed at random moments, at most 0.5 % are in no bucket of the ledger",
        ours=share, bar=BAR, holds=share <= BAR and equal == len(rows), seed=seed, n=len(rows), worst_of_a_job=worst,
        worker_s=round(total, 1), tick_ns=round(cost),
        rows=[
            *table(("killed", "trials", *names), [_mean(kind, names, rows) for kind in sorted({row["kind"] for row in rows})]), "",
            f"Mean worker-seconds of a job, by what was killed. {said} {equal} of {len(rows)} jobs equal to the calm one.",
            f"A tick of the progress clock takes {cost:.0f} ns (the least of {ROUNDS} rounds).",
        ],
    )  # fmt: skip


def _mean(kind: str, names: Sequence[str], rows: Sequence[dict[str, Any]]) -> list[Any]:
    chosen = [row for row in rows if row["kind"] == kind]
    return [kind, len(chosen), *(f"{sum(row['seconds'][name] for row in chosen) / len(chosen):.2f}" for name in names)]


if __name__ == "__main__":
    raise SystemExit(main())
