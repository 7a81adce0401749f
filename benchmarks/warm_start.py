"""Claim: from a job that is durable in the store to its first step it takes 0.5 s, a twentieth of Ray Train's time, a tenth of torchrun's.

    python benchmarks/warm_start.py [--n 20] [--seed 1]

Controller and warm process are up, the data set is prepared; Ray Train's cluster is up too. Ours holds the evaluation before the first
step. The time of the whole command, which ends when the job is durable, is reported beside it.
"""

from __future__ import annotations

import statistics

from record import options, publish, table
from recovery import spread
from restarts import PEERS, rounds

BAR_S = 0.5
RATIOS = {"ray train": 20.0, "torchrun": 10.0}


def main() -> int:
    asked = options(20)
    found = rounds(asked.n, asked.seed)
    start = {name: [row[key]["start_s"] for row in found for key in row if key.startswith(name)] for name in PEERS}
    mine = [row["ours 10"]["start_s"] for row in found]
    command = [row["ours 10"]["command_s"] for row in found]
    ours = statistics.median(mine)
    ratios = {peer: [theirs / own for own, theirs in zip(mine, start[peer], strict=True)] for peer in PEERS}
    medians = {peer: round(statistics.median(ratio), 1) for peer, ratio in ratios.items()}
    rows = [("ours", *spread(mine)), ("ours, with the command", *spread(command))]
    rows += [(peer, *spread(start[peer])) for peer in PEERS]
    return publish(
        "warm_start", "From a job that is durable to its first step: 0.5 s, a twentieth of Ray Train's time, a tenth of torchrun's",
        ours=round(ours, 2), bar=BAR_S, holds=ours <= BAR_S and all(medians[peer] >= least for peer, least in RATIOS.items()),
        peers={peer: round(statistics.median(start[peer]), 2) for peer in PEERS}, n=asked.n, seed=asked.seed, ratios=medians,
        ratio_spread={peer: [round(min(ratio), 1), round(max(ratio), 1)] for peer, ratio in ratios.items()},
        rows=table(("seconds to the first step", "median", "min", "max"), rows),
    )  # fmt: skip


if __name__ == "__main__":
    raise SystemExit(main())
