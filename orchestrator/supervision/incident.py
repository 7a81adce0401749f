"""What was seen when a job stood still, for people: one JSON document per incident. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from orchestrator.supervision.diagnosis import Verdict


def incident_name(epoch: int) -> str:
    """Of the artifact; an epoch has one incident at most."""
    return f"incident-{epoch:08d}.json"


def incident_json(
    verdict: Verdict, epoch: int, committed_step: int | None, time_s: float, inspections: Sequence[Mapping[str, Any]]
) -> bytes:  # fmt: skip
    """`inspections`: of each node's agent, see `Agent.inspect`. `time_s`: seconds since 1970."""
    ranks = [{"node": found["bundle"], **rank} for found in inspections for rank in found["ranks"]]
    nodes = [{"node": found["bundle"], **found["node"]} for found in inspections]
    document = {
        "summary": verdict.sentence, "reason": verdict.reason.name, "culprit": verdict.rank, "fingerprint": verdict.fingerprint,
        "time_s": time_s, "epoch": epoch, "committed_step": committed_step,
        "ranks": sorted(ranks, key=lambda rank: rank["rank"]), "nodes": nodes,
    }  # fmt: skip
    return json.dumps(document, indent=2).encode()
