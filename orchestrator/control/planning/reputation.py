"""What speaks against a machine: incidents of all jobs, each of which weighs half as much after every half-life. Pure.

Of the same kind, a job counts once on a machine: its own fault would happen wherever it runs, again and again, and must not take a machine
from everybody. A machine is known by its host name, which stays when Ray starts anew, as Ray's own id does not (decision 0032).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

from orchestrator.control.scheduler.model import ClusterView, Standing
from orchestrator.events import IncidentKind

HALF_LIFE_S = 3 * 86_400.0
MEMORY_S = 10 * HALF_LIFE_S
"""After which an incident weighs a thousandth, and is not looked at any more."""
SUSPECT_SCORE = 0.25
"""An incident or two of late: the machine is taken last."""
EXCLUDED_SCORE = 1.25
"""Several, of more than one job or kind: it is not taken."""


@dataclass(frozen=True, kw_only=True)
class Incident:
    job_id: str
    kind: IncidentKind
    node: str
    """Host name."""
    gpu: str = ""
    """Identity of the GPU; empty: of none."""
    time_s: float
    message: str = ""


def weight(incident: Incident, now: float) -> float:
    return incident.kind.weight * 0.5 ** (max(now - incident.time_s, 0.0) / HALF_LIFE_S)


def scores(incidents: Iterable[Incident], now: float, name: Callable[[Incident], str] = lambda incident: incident.node) -> dict[str, float]:
    """Of each machine, or of what else `name` says of an incident; those without a name are passed over."""
    heaviest: dict[tuple[str, str, IncidentKind], float] = {}
    for incident in incidents:
        key = name(incident), incident.job_id, incident.kind
        heaviest[key] = max(heaviest.get(key, 0.0), weight(incident, now))
    found: dict[str, float] = {}
    for (named, *_), value in heaviest.items():
        if named:
            found[named] = found.get(named, 0.0) + value
    return found


def standing(score: float) -> Standing:
    if score >= EXCLUDED_SCORE:
        return Standing.EXCLUDED
    return Standing.SUSPECT if score >= SUSPECT_SCORE else Standing.GOOD


def judged(view: ClusterView, found: Mapping[str, float]) -> ClusterView:
    """The view with what the machines' `scores` mean for it."""
    return ClusterView(nodes=tuple(replace(node, standing=standing(found.get(node.host, 0.0))) for node in view.nodes))
