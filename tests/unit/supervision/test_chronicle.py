"""What a run tells of itself while it runs."""

from __future__ import annotations

from orchestrator.paths import Home, JobKeys
from orchestrator.spec import JobSpec, from_dict
from orchestrator.storage import MemoryStore
from orchestrator.supervision.chronicle import Chronicle
from orchestrator.supervision.context import RunContext
from orchestrator.supervision.status_board import StatusBoard
from orchestrator.supervision.tracking_child import TrackingChild
from orchestrator.tracking.delivery import Delivered, save_delivered
from orchestrator.tracking.journal import Journal


def test_the_run_of_the_tracking_server_is_shown_as_soon_as_it_is_known(tmp_path):
    values = {
        "workload": {"name": "x", "entrypoint": "m:C"}, "model": {"name": "x"}, "data": {"name": "x"}, "tracking": {"enabled": False},
        "training": {"max_steps": 9, "global_batch_size": 8, "micro_batch_size": 2},
    }  # fmt: skip
    context = RunContext(job_id="job", run=1, spec=from_dict(JobSpec, values), home=Home(tmp_path), ranks_per_bundle=(1,))
    journal = Journal(tmp_path / "journal.jsonl", MemoryStore(), JobKeys("job"))
    chronicle = Chronicle(1, StatusBoard("job", 9, "life"), journal, TrackingChild(context, journal.path))
    seen = []
    for step in range(1, 4):
        if step > 1:
            save_delivered(journal.path, Delivered(mlflow_run_id=f"run-{step}"))
        chronicle.hear({"type": "metrics", "step": step, "values": {"loss": 1.5}, "time_s": float(step)})
        seen.append((chronicle.board.progress.step, chronicle.board.progress.mlflow_run_id))
    assert seen == [(1, ""), (2, "run-2"), (3, "run-2")]
