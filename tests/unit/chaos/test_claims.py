"""A fault is done once, whoever comes to it how often."""

from __future__ import annotations

import json

from orchestrator.chaos.claims import Claims
from orchestrator.chaos.plan import Fault, Kind
from orchestrator.paths import JobKeys
from orchestrator.storage import MemoryStore

FIRST, SECOND = (Fault(name=f"kill_rank-{number}", kind=Kind.KILL_RANK, step=5, phase="data", rank=0) for number in (1, 2))


def test_the_first_claim_counts_over_all_lives_and_jobs_do_not_see_each_others():
    store = MemoryStore()
    assert Claims(store, "a").claim(FIRST, 7, "rank 0")
    assert not Claims(store, "a").claim(FIRST, 8, "rank 0")
    assert Claims(store, "a").claim(SECOND, 8, "rank 0") and Claims(store, "b").claim(FIRST, 9, "rank 1")
    assert Claims(store, "a").done() == {"kill_rank-1", "kill_rank-2"} and Claims(store, "b").done() == {"kill_rank-1"}
    kept = json.loads(store.get(JobKeys("a").fault("kill_rank-1")))
    assert (kept["kind"], kept["done_at"], kept["by"]) == ("kill_rank", 7, "rank 0")
