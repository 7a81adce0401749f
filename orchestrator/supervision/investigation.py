"""What a job that stands still is waiting for: all ranks are looked at, what was seen is kept for people. No Ray."""

from __future__ import annotations

from orchestrator.supervision.chronicle import Chronicle
from orchestrator.supervision.committer import Committer
from orchestrator.supervision.diagnosis import Verdict
from orchestrator.supervision.hang import RankView, explain
from orchestrator.supervision.incident import incident_json, incident_name
from orchestrator.supervision.worker_group import Group


def investigate(
    group: Group, committer: Committer, chronicle: Chronicle, *, epoch: int, hang_timeout_s: float, time_s: float
) -> Verdict | None:  # fmt: skip
    """None if a rank has moved meanwhile, or none answers. `time_s`: seconds since 1970."""
    seen = group.inspect()
    views = [RankView.of(rank) for found in seen for rank in found["ranks"]]
    if not views or min(view.still_s for view in views) < hang_timeout_s / 2:
        return None
    verdict = explain(views)
    content = incident_json(verdict, epoch, committer.newest_step, time_s, seen)
    chronicle.kept(incident_name(epoch), committer.keep(incident_name(epoch), content))
    return verdict
