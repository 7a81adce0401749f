"""Claim: 8 -> 16 GPUs by the autoscaler and back to no idle node without a lost step; a drain with 20 s loses the step in flight at most.

    make campaign NAME=provisioning N=5 SEED=1

Each trial is a cluster of its own: a head without CPUs, Ray's real autoscaler, and real raylets that say they have 8 GPUs. Two jobs are
submitted that fill a node each. While both train, the node of the second is drained at a random step, with 20 s notice; the job saves,
leaves, and goes on on a node that the autoscaler starts in its place. At the end both must have the same losses and weights, bit for bit,
and all nodes must be gone.
"""

from __future__ import annotations

import dataclasses
import random
from typing import Any

from record import Kept, options, publish, table

from provisioning_trial import IDLE_S, NOTICE_S, STEPS, Outcome, grow_drain_and_shrink, scaling  # isort: skip  - `record` puts it on the path


def trial(number: int, seed: int) -> dict[str, Any]:
    with scaling() as (sandbox, cluster):
        found = grow_drain_and_shrink(sandbox, cluster, random.Random(f"{seed} {number}").randrange(5, STEPS // 2))
    return {**dataclasses.asdict(found), "amiss": found.amiss()}


def main() -> int:
    asked = options(5)
    kept = Kept("campaign-provisioning", asked.seed)
    for number in range(len(kept.rows), asked.n):
        kept.add(trial(number, asked.seed))
        print(f"{number + 1:3d}/{asked.n}  {kept.rows[-1]}", flush=True)
    rows = kept.rows[: asked.n]
    wrong = [what for row in rows for what in row["amiss"]]
    header = (
        "drained in step", "steps lost", "lost of the other job (s)", "equal", "first node (s)", "second (s)", "in its place (s)",
        "no node left (s)",
    )  # fmt: skip
    return publish(
        "provisioning",
        "8 to 16 GPUs by the autoscaler and back to no idle node without a lost step; a drain with 20 s loses at most the step in flight",
        ours=len(wrong), bar=0, holds=not wrong and len(rows) == asked.n, unit="findings", seed=asked.seed, n=asked.n,
        lost_steps=sum(row["lost_steps"] for row in rows), notice_s=NOTICE_S,
        rows=[
            *table(header, [_cells(row) for row in rows]), "",
            "Seconds from the demand to the place on the new node, and from the end of the last job to the end of the last node, of which "
            f"the autoscaler waits {IDLE_S:g} s. Nodes are raylets of this machine, so to boot one is to start a raylet.",
        ],
    )  # fmt: skip


def _cells(row: dict[str, Any]) -> list[Any]:
    found = Outcome(**{name: value for name, value in row.items() if name != "amiss"})
    times = [f"{passed:.1f}" for passed in (*found.provision_s, found.empty_s)]
    return [found.drained_at, found.lost_steps, f"{found.lost_s:.1f}", "yes" if found.equal else "no", *times]


if __name__ == "__main__":
    raise SystemExit(main())
