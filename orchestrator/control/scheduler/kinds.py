"""Gangs that are equal: where they may run at all. Pure but for `Kind`, which a plan marks."""

from __future__ import annotations

from dataclasses import dataclass

from orchestrator.control.scheduler.model import ClusterView, Demand, Standing
from orchestrator.control.scheduler.place import Grid, place, stays_on_one


@dataclass(slots=True)
class Kind:
    """Equal gangs, as long as one plan is made. What one of them was refused need not be looked for again."""

    demand: Demand
    allowed: int
    """Nodes that it may run on: of those with its labels not those that are excluded, unless it could never run on the others."""
    possible: bool
    """It would fit if nothing else ran."""
    on_one: bool
    """It stays on one node."""
    full: bool = False
    """There is no place for it, for any time."""
    crowded: bool = False
    """There is none until the first reservation either."""


def possible(cluster: ClusterView, empty: Grid, demand: Demand) -> tuple[int, bool, bool]:
    """(nodes that a gang may run on, whether it fits them if nothing else runs, whether it stays on one)."""
    labelled = empty.with_labels(demand)
    trusted = labelled & sum(1 << i for i, node in enumerate(cluster.usable) if node.standing is not Standing.EXCLUDED)
    if place(empty, demand, trusted) is not None:
        return trusted, True, stays_on_one(empty, demand, trusted)
    return labelled, place(empty, demand, labelled) is not None, stays_on_one(empty, demand, labelled)
