"""Who runs next, and where: `plan`, a pure function of what is known. No clock, no I/O, no Ray."""

from __future__ import annotations

from dataclasses import replace

from orchestrator.control.scheduler.coming import plan_ahead
from orchestrator.control.scheduler.explain import explain
from orchestrator.control.scheduler.model import ClusterView, Demand, Job, Plan, Policy, Run, Standing, Usage
from orchestrator.control.scheduler.place import Grid, place
from orchestrator.control.scheduler.planner import plan
from orchestrator.control.scheduler.reasons import infeasible

__all__ = ["ClusterView", "Demand", "Job", "Plan", "Policy", "Run", "Standing", "Usage", "explain", "feasible", "plan", "plan_ahead"]


def feasible(cluster: ClusterView, demand: Demand) -> str | None:
    """None if the gang fits the empty cluster, else why it can never run there."""
    alive = tuple(node for node in cluster.nodes if node.alive)
    grid = Grid(ClusterView(nodes=tuple(replace(node, draining=False) for node in alive)))
    return None if place(grid, demand, grid.with_labels(demand)) is not None else infeasible(alive, demand)
