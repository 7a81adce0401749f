"""Who runs next, and where: `plan`, a pure function of what is known. No clock, no I/O, no Ray."""

from __future__ import annotations

from orchestrator.control.scheduler.model import ClusterView, Demand, Job, Plan, Policy, Run, Standing, Usage

__all__ = ["ClusterView", "Demand", "Job", "Plan", "Policy", "Run", "Standing", "Usage", "feasible", "plan"]


def plan(cluster: ClusterView, queue: tuple[Job, ...], running: tuple[Run, ...], usage: Usage, now: float, policy: Policy) -> Plan:
    """What to do at `now`. The same for every order of nodes, queue and running jobs."""
    raise NotImplementedError


def feasible(cluster: ClusterView, demand: Demand) -> str | None:
    """None if the gang fits the empty cluster, else why it can never run there."""
    raise NotImplementedError
