"""Jobs that are broken on purpose by the chaos mode, and compared with a calm one: for the fault test and for the campaign."""

from __future__ import annotations

import random
import time
from collections import Counter
from typing import Any

from harness import TINY, Sandbox

from orchestrator.chaos.claims import Claims
from orchestrator.job import JobState
from orchestrator.supervision.accounting import Bucket
from orchestrator.supervision.ledger import as_of

SETTINGS = (
    *TINY, "training.max_steps=300", "training.log_interval_steps=1", "recovery.hang_timeout_s=3", "recovery.long_phase_timeout_s=10",
    "recovery.max_restarts_without_progress=20", "chaos.hide_s=2",
)  # fmt: skip
WEIGHTS = {
    "kill_rank": 6, "stop_rank": 2, "hold_gil": 2, "slow_rank": 2, "drop_connection": 3, "kill_agent": 2, "kill_uploader": 2,
    "kill_warm": 1, "kill_supervisor": 3, "kill_controller": 1, "fail_store_call": 3, "hide_tracking": 1,
}  # fmt: skip
"""How often each kind comes in a job that is drawn. `kill_raylet` takes a node away for good and has a campaign of its own (leaks)."""


def drawn(seed: int, number: int, most: int = 20) -> Counter[str]:
    """The faults of job `number` of a campaign: 1 to `most` of them, by kind."""
    rng = random.Random(f"{seed} {number}")
    return Counter(rng.choices(list(WEIGHTS), list(WEIGHTS.values()), k=rng.randint(1, most)))


class Trials:
    def __init__(self, box: Sandbox, *more: str) -> None:
        self.box, self._settings = box, (*SETTINGS, *more)
        self._calm: tuple[Any, str] | None = None

    def calm(self) -> tuple[Any, str]:
        """History and fingerprint of the job that nothing befalls."""
        if self._calm is None:
            job_id = self.box.submit(*self._settings)
            assert self.box.wait_ended(job_id).state is JobState.SUCCEEDED, self.box.describe()
            self._calm = self.box.history(job_id), self.box.fingerprint(job_id)
        return self._calm

    def strike(self, seed: int, faults: Counter[str], timeout_s: float = 600) -> dict[str, Any]:
        """What became of a job that these faults befell: `equal` to the calm one or not, which faults were `done`, and of its
        worker-seconds, how many are in no bucket of the ledger."""
        calm, began = self.calm(), time.monotonic()
        tracked = ("tracking.enabled=true",) if faults["hide_tracking"] else ()
        counts = [f"chaos.{name}={count}" for name, count in sorted(faults.items())]
        job_id = self.box.submit(*self._settings, *tracked, f"chaos.seed={seed}", *counts)
        job = self.box.wait_ended(job_id, timeout_s)
        done = sorted(Claims(self.box.store(job_id), job_id).done())
        ledger = as_of(job, now_s=0.0)
        assert ledger is not None, self.box.describe()
        equal = job.state is JobState.SUCCEEDED and (self.box.history(job_id), self.box.fingerprint(job_id)) == calm
        return {
            "job": job_id, "planned": faults.total(), "done": done, "equal": equal, "state": job.state.value, "reason": job.reason,
            "worker_s": ledger.worker_s, "unattributed_s": ledger.seconds[Bucket.UNATTRIBUTED],
            "restarts": job.progress.restarts, "took_s": round(time.monotonic() - began, 1),
        }  # fmt: skip
