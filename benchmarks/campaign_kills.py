"""Claim: a job whose processes are killed at random moments ends with the calm run's losses and weights, bit for bit.

    make campaign NAME=kills N=60 SEED=1

Each trial submits a small GPT on real text with two workers, sends SIGKILL to one process (`save`: to a rank in the middle of writing a
checkpoint; `everything`: to all processes, then `orchestrator resume`) at a random step, waits for the end and compares the loss
history and the hash of weights and optimizer state with those of an undisturbed run. Trials that are done are kept under `build/`
and not run again.
"""

from __future__ import annotations

import random
import time
from collections import Counter
from contextlib import suppress
from typing import Any

from record import Kept, options, publish, table

from harness import Sandbox  # isort: skip  - `record` puts it on the path
from orchestrator.checkpoints.slab import Slab, SlabState, slabs_of
from orchestrator.job import JobState
from orchestrator.supervision.agent import SHARED_MEMORY

KINDS = ("rank", "save", "supervisor", "rank", "agent", "rank", "save", "controller", "uploader", "warm", "rank", "everything")
STEPS = 200
GPT = (
    "workload=gpt", "model=gpt-tiny", "name=gpt-tiny", f"training.max_steps={STEPS}", "training.log_interval_steps=1",
    "training.eval_samples=64", "checkpoint.interval_steps=20", "resources.cpus_per_worker=0.5", "tracking.enabled=false",
    "cluster.idle_timeout_s=600", "recovery.backoff_s=0.1",
)  # fmt: skip


class Campaign:
    def __init__(self, seed: int) -> None:
        self.box = Sandbox()
        self.seed = seed
        self.calm: tuple[Any, str] | None = None

    def reference(self) -> tuple[Any, str]:
        """History and fingerprint of the calm run."""
        if self.calm is None:
            job_id = self.box.submit(*GPT)
            assert self.box.wait_ended(job_id).state is JobState.SUCCEEDED, self.box.describe()
            self.calm = self.box.history(job_id), self.box.fingerprint(job_id)
        return self.calm

    def trial(self, number: int) -> dict[str, Any]:
        rng, kind = random.Random(f"{self.seed} {number}"), KINDS[number % len(KINDS)]
        reference = self.reference()
        job_id = self.box.submit(*GPT)
        at = rng.randrange(1, STEPS - 20)
        self.box.wait_step(job_id, at)
        time.sleep(rng.random() * 0.05)
        self._kill(kind, job_id, rng)
        killed_s = time.monotonic()
        if kind == "everything":
            self.box.run("resume", job_id)
        job = self.box.wait_ended(job_id)
        same = job.state is JobState.SUCCEEDED and (self.box.history(job_id), self.box.fingerprint(job_id)) == reference
        return {
            "number": number, "kind": kind, "after_step": at, "restarts": job.progress.restarts, "equal": same,
            "state": job.state.value, "ended_s": round(time.monotonic() - killed_s, 1),
        }  # fmt: skip

    def _kill(self, kind: str, job_id: str, rng: random.Random) -> None:
        if kind == "everything":
            self.box.kill_everything()
            return
        if kind == "save":
            wait_for_save(self.box, job_id)
        victims = self.box.wait_until(lambda: self.box.victims("rank" if kind == "save" else kind), f"a {kind}")
        rng.choice(victims).kill()


def wait_for_save(box: Sandbox, job_id: str) -> None:
    """Until state that a rank has staged is on its way to the store."""

    def saving() -> bool:
        with suppress(FileNotFoundError):  # one is being made
            return any(Slab.open(path).state is SlabState.STAGED for path in slabs_of(SHARED_MEMORY, f"orchestrator-{job_id}"))
        return False

    limit = time.monotonic() + 240
    while not saving():
        assert time.monotonic() < limit, box.describe()


def main() -> int:
    asked = options(60)
    kept = Kept("campaign-kills", asked.seed)
    rows = kept.rows
    campaign = Campaign(asked.seed)
    try:
        for number in range(len(rows), asked.n):
            kept.add(campaign.trial(number))
            print(f"{number + 1:3d}/{asked.n}  {rows[-1]}", flush=True)
    finally:
        campaign.box.close()
    rows = rows[: asked.n]
    equal = sum(row["equal"] for row in rows)
    tried, good = Counter(row["kind"] for row in rows), Counter(row["kind"] for row in rows if row["equal"])
    return publish(
        "kills", "A job that is killed at a random moment ends with the calm run's losses, weights and optimizer state, bit for bit",
        ours=equal, bar=asked.n, holds=equal == asked.n, seed=asked.seed, n=asked.n,
        rows=table(("killed", "trials", "equal to the calm run"), [(kind, tried[kind], good[kind]) for kind in sorted(tried)]),
    )  # fmt: skip


if __name__ == "__main__":
    raise SystemExit(main())
