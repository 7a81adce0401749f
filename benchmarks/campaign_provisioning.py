"""Claim: nodes come for jobs that wait and leave when none does; a node that is taken away with a notice costs at most the step in flight.

    make campaign NAME=provisioning N=10 SEED=1

A cluster without workers, Ray's real autoscaler, and raylets that it starts and ends, of 8 pretended GPUs each. A job of two workers
comes, then another: 16 GPUs. Ray drains the node of the second one at a random step, with a notice of 20 seconds; the job saves, goes
back to the queue, waits for a new node and goes on. When both have ended no node may be left. All trials are on the same cluster.
"""

from __future__ import annotations

import random
from statistics import median
from typing import Any

from record import options, publish, table

from harness import Sandbox  # isort: skip  - `record` puts it on the path
from scaling_trials import NOTICE_S, STEPS, scaling_cluster, trial  # isort: skip

LATEST = STEPS // 2
"""Step after which Ray is told to drain the node, which takes a second or two: the job shall not have ended by then."""


def amiss(row: dict[str, Any]) -> list[str]:
    """What of a trial is not as it should be."""
    wanted = {
        "16 GPUs at the same time": row["gpus"] == 16, "both succeed": row["states"] == ["succeeded"] * 2,
        "one preemption": row["preemptions"] == [0, 1], "no restart": row["restarts"] == [0, 0],
        "at most the step in flight is repeated": 0 <= row["repeated"] <= 1, "no work is lost on the node that stays": row["lost_s"] == 0,
        "the same losses and state": row["equal"], "time in the ledger for nodes": all(map(sum, row["nodes_s"])),
    }  # fmt: skip
    return [what for what, holds in wanted.items() if not holds]


def main() -> int:
    asked = options(10)
    rng, box, rows = random.Random(asked.seed), Sandbox(), []
    cluster = scaling_cluster(box)
    try:
        for number in range(asked.n):
            at = rng.randint(5, LATEST)
            row = trial(box, cluster, at)
            rows.append({**row, "at": at, "amiss": amiss(row)})
            print(f"{number + 1:3d}/{asked.n}  {rows[-1]}", flush=True)
    finally:
        box.run("down")
        cluster.close()
        box.close()
    found = [what for row in rows for what in row["amiss"]]
    waits = "worker-s until the nodes of the first job were on their way, and until they had joined", "of the second, both times"
    header = ("drained after step", "GPUs", "steps repeated", *waits, "empty after, s", "amiss")
    lines = [
        (
            row["at"], row["gpus"], row["repeated"], *(" + ".join(map(str, waited)) for waited in row["nodes_s"]), row["empty_s"],
            ", ".join(row["amiss"]) or "-",
        )
        for row in rows
    ]
    return publish(
        "provisioning", "Nodes come for jobs that wait and leave when none does; a drained node costs at most the step in flight",
        ours=len(found), bar=0, holds=not found, unit="findings", seed=asked.seed, n=len(rows), notice_s=NOTICE_S,
        repeated=sum(row["repeated"] for row in rows), empty_s=median(row["empty_s"] for row in rows), rows=table(header, lines),
    )  # fmt: skip


if __name__ == "__main__":
    raise SystemExit(main())
