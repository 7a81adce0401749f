"""Several faults of several kinds befall one job, and its losses, weights and optimizer state are those of the calm one, bit for bit.

`make campaign NAME=chaos N=...` runs the long form of the same function.
"""

from __future__ import annotations

from collections import Counter

import pytest
from chaos_trials import Trials
from harness import Sandbox

from orchestrator.events import EventKind
from orchestrator.paths import JobKeys
from orchestrator.tracking.journal import read_segments

PATIENT = ("recovery.hang_timeout_s=10", "recovery.long_phase_timeout_s=60")
"""Where others run beside it, a rank gets no turn for seconds now and then."""
FAULTS = Counter(kill_rank=1, hold_gil=1, drop_connection=1, kill_agent=1, kill_supervisor=1, fail_store_call=1)


@pytest.mark.slow
def test_a_job_that_six_faults_befall_equals_the_calm_one():
    box = Sandbox()
    try:
        found = Trials(box, *PATIENT).strike(seed=1, faults=FAULTS)
        assert found["equal"], f"{found}\n{box.describe()}"
        assert found["done"] == sorted(f"{kind}-1" for kind in FAULTS)
        assert found["restarts"] >= 2  # of four that ask for one; a recovery may serve two
        assert found["unattributed_s"] <= 0.005 * found["worker_s"], found
        told = [record for record in read_segments(box.store(found["job"]), JobKeys(found["job"])) if record["kind"] == "event"]
        assert any(record["message"].startswith("chaos is on: ") for record in told if record["event"] == EventKind.WARNING.value)
        assert sorted(record["fault"] for record in told if record["event"] == EventKind.CHAOS.value) == found["done"]
    finally:
        box.close()
