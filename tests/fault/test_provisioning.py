"""A cluster that begins without workers, with Ray's real autoscaler and real raylets of 8 pretended GPUs each.

`make campaign NAME=provisioning N=...` runs the same trial again and again.
"""

from __future__ import annotations

import pytest
from provisioning_trial import grow_drain_and_shrink, scaling

from orchestrator.supervision.accounting import Bucket


@pytest.mark.slow
def test_nodes_come_for_jobs_that_wait_and_leave_when_none_does_and_no_step_is_lost():
    with scaling() as (sandbox, cluster):
        found = grow_drain_and_shrink(sandbox, cluster, drained_at=10)
        assert found.amiss() == [], (found, sandbox.describe())
        ledgers = [sandbox.ledger(job.id).seconds for job in sandbox.jobs()]
        assert all(seconds[Bucket.PROVISION] > 1.0 for seconds in ledgers), "they waited for nodes"
