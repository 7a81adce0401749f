"""The books of a run are closed although the store fails for a moment."""

from __future__ import annotations

import json
import time

import pytest

from orchestrator.errors import ObjectNotFound
from orchestrator.job import EndReason, JobResult
from orchestrator.paths import Home, JobKeys
from orchestrator.spec import JobSpec, from_dict
from orchestrator.storage import Fault, FaultyStore, MemoryStore
from orchestrator.supervision.bookkeeper import Bookkeeper
from orchestrator.supervision.chronicle import Chronicle
from orchestrator.supervision.context import RunContext
from orchestrator.supervision.ending import RESULT_TRIES, close_books
from orchestrator.supervision.status_board import StatusBoard
from orchestrator.supervision.tracking_child import TrackingChild
from orchestrator.tracking.journal import Journal

KEYS = JobKeys("job")


def closed(folder, times, reason=EndReason.COMPLETED):
    """(what is in the store, the pauses that were made) after the store has refused the first `times` writes."""
    memory, pauses = MemoryStore(), []
    store = FaultyStore(memory, [Fault(kind="unavailable", operation="put", number=1, times=times)])
    values = {
        "workload": {"name": "x", "entrypoint": "m:C"}, "model": {"name": "x"}, "data": {"name": "x"}, "tracking": {"enabled": False},
        "training": {"max_steps": 2, "global_batch_size": 8, "micro_batch_size": 2},
    }  # fmt: skip
    context = RunContext(job_id="job", run=1, spec=from_dict(JobSpec, values), home=Home(folder), ranks_per_bundle=(1,))
    journal = Journal(folder / "journal.jsonl", store, KEYS)
    chronicle = Chronicle(1, StatusBoard("job", 2, "life"), journal, TrackingChild(context, journal.path))
    chronicle.hear({"type": "metrics", "step": 1, "values": {"loss": 1.5}, "time_s": 1.0})
    books = Bookkeeper(context, chronicle, time.time)
    assert close_books(context, store, chronicle, JobResult(end_reason=reason, message="ended", step=2), books, pauses.append) is None
    return memory, pauses


def test_what_a_store_refuses_for_a_moment_is_written_after_all(tmp_path):
    store, pauses = closed(tmp_path, times=2)
    history = json.loads(store.get(KEYS.artifact("history.json")))["history"]
    assert [row["step"] for row in history] == [1] and store.get(KEYS.artifact("loss.png"))
    assert list(store.list(KEYS.journal)) and len(pauses) == 2


@pytest.mark.parametrize(
    ("times", "reason", "pauses"), [(50, EndReason.COMPLETED, RESULT_TRIES - 1), (1, EndReason.PREEMPTED, 0), (1, EndReason.STORAGE, 0)]
)
def test_it_is_not_waited_for_long_and_not_at_all_where_that_would_be_in_vain(tmp_path, times, reason, pauses):
    store, made = closed(tmp_path, times, reason)
    with pytest.raises(ObjectNotFound):
        store.get(KEYS.artifact("history.json"))
    assert len(made) == pauses and json.loads(store.get(KEYS.result(1)))["end_reason"]
