"""Claim: a job whose processes are killed at random moments ends with the calm run's losses and weights, bit for bit.

    make campaign NAME=kills N=20 SEED=1

Each trial submits the tiny two-worker job, sends SIGKILL to one process at a random step, waits for the end and compares history
and the hash of weights and optimizer state with those of an undisturbed run. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from harness import TINY, Sandbox

from orchestrator.job import JobState

KINDS = ("rank", "rank", "rank", "agent", "supervisor", "controller", "warm")
STEPS = 300


def trial(box: Sandbox, rng: random.Random, kind: str) -> tuple[str, int, float]:
    """(job, step at which the victim was killed, seconds to the end after it)."""
    job_id = box.submit(*TINY, f"training.max_steps={STEPS}")
    at = rng.randrange(1, STEPS - 20)
    box.wait_step(job_id, at)
    time.sleep(rng.random() * 0.05)
    victim = rng.choice(box.wait_until(lambda: box.victims(kind), f"a {kind}"))
    victim.kill()
    killed = time.monotonic()
    box.wait_ended(job_id)
    return job_id, at, time.monotonic() - killed


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--n", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1)
    asked = parser.parse_args()
    rng = random.Random(asked.seed)
    box = Sandbox()
    equal = 0
    try:
        calm = box.submit(*TINY, f"training.max_steps={STEPS}")
        assert box.wait_ended(calm).state is JobState.SUCCEEDED
        reference = box.history(calm), box.fingerprint(calm)
        for number in range(asked.n):
            kind = KINDS[number % len(KINDS)]
            job_id, at, seconds = trial(box, rng, kind)
            job = box.job(job_id)
            same = job.state is JobState.SUCCEEDED and (box.history(job_id), box.fingerprint(job_id)) == reference
            equal += same
            print(
                f"{number + 1:3d}/{asked.n}  {kind:<10} killed after step {at:3d}  restarts {job.progress.restarts}  "
                f"ended {seconds:4.1f} s later  {'equal' if same else 'DIFFERENT: ' + job.state.value}",
                flush=True,
            )
    finally:
        box.close()
    claim = "a killed run equals the calm run bit for bit"
    result = {"claim": claim, "ours": equal, "peers": {}, "ratio": equal / asked.n, "bar": asked.n, "holds": equal == asked.n}
    print(json.dumps({**result, "seed": asked.seed, "n": asked.n}))
    return 0 if equal == asked.n else 1


if __name__ == "__main__":
    sys.exit(main())
