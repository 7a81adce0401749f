"""Which failure speaks against the machine that it happened on, and how. Pure."""

from __future__ import annotations

from orchestrator.events import IncidentKind
from orchestrator.job import EndReason, Remedy
from orchestrator.supervision.diagnosis import Verdict


def incident_of(verdict: Verdict, world_size: int) -> IncidentKind | None:
    """None: it was the job, chance, or somebody outside; or which of the machines is not known."""
    match verdict.reason:
        case EndReason.DRIFT:  # of two that differ, either may be right
            return IncidentKind.WRONG_BITS if world_size > 2 else None
        case EndReason.HANG:
            return IncidentKind.HANG if verdict.points_at_rank else None
        case EndReason.NODE_LOST:
            return IncidentKind.LOST
    if verdict.remedy is Remedy.OTHER_NODE:
        return IncidentKind.BROKEN_DEVICE
    return IncidentKind.DEVICE_FAULT if verdict.reason is EndReason.DEVICE_FAULT else None


def fields_of(kind: IncidentKind | None, node: str, gpu: str) -> dict[str, str]:
    """Of the event, for who keeps account of machines; none if nothing speaks against one, or if it is not known."""
    if kind is None or not node:
        return {}
    return {"incident": kind.name, "node": node, **({"gpu": gpu} if gpu else {})}
