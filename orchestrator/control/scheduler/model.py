"""What the scheduler sees and what it decides. Pure data.

CPUs are counted in whole units of 1/10000, so that any number of half workers adds up exactly.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from orchestrator.spec import ResourcesSpec

CPU_UNITS = 10_000
Placement = tuple[tuple[str, int], ...]
"""(node id, number of workers) of each bundle."""


class Standing(enum.IntEnum):
    """By what has happened on a machine lately."""

    GOOD = 0
    SUSPECT = 1  # taken last
    EXCLUDED = 2  # not taken by a job that could ever run without it


@dataclass(frozen=True, kw_only=True)
class Node:
    """What a node has in all, not what is free on it."""

    id: str
    host: str = ""
    """Name of the machine; stays when Ray starts anew."""
    cpu_units: int
    gpus: int = 0
    alive: bool = True
    draining: bool = False
    drain_deadline_s: float | None = None
    """Seconds since 1970, of a node that is draining; None: it names none."""
    standing: Standing = Standing.GOOD

    @property
    def name(self) -> str:
        """For people."""
        return self.host or self.id[:8]


@dataclass(frozen=True, kw_only=True)
class ClusterView:
    nodes: tuple[Node, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        return {"nodes": [vars(node) for node in self.nodes]}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ClusterView:
        return cls(nodes=tuple(Node(**{**node, "standing": Standing(node.get("standing", 0))}) for node in values["nodes"]))


@dataclass(frozen=True, kw_only=True)
class Demand:
    """A gang of equal workers."""

    num_workers: int
    cpu_units: int
    """Of each worker."""
    gpus: int = 0
    """Of each worker."""
    max_workers_per_node: int = 0
    """0: as many as fit."""

    @classmethod
    def of(cls, resources: ResourcesSpec) -> Demand:
        return cls(
            num_workers=resources.num_workers,
            cpu_units=max(1, round(resources.cpus_per_worker * CPU_UNITS)),
            gpus=int(resources.gpus_per_worker),
            max_workers_per_node=resources.max_workers_per_node,
        )


@dataclass(frozen=True, kw_only=True)
class QueuedJob:
    job_id: str
    queued_s: float
    demand: Demand
    """Of the whole gang."""
    smaller: tuple[int, ...] = ()
    """Numbers of workers, ascending, with which it may start where nodes are missing; none: all or none."""
    shrink_after_s: float = 0.0
    short_since_s: float | None = None
    """Since when nodes have been missing (`Plan.short`), as far as known."""


@dataclass(frozen=True, kw_only=True)
class RunningJob:
    """A job that holds a place, from the moment it was given one."""

    job_id: str
    demand: Demand
    """Of the whole gang; `placement` may hold fewer workers."""
    placement: Placement
    may_grow: bool = False
    """It may be told to leave for a place for its whole gang."""
    growing: bool = False
    """It was told so, and has not left yet."""


@dataclass(frozen=True, kw_only=True)
class Usage:
    """What tenants have used so far. Nothing is charged yet: order is by time of submission alone."""


@dataclass(frozen=True, kw_only=True)
class Policy:
    mode: str = "fifo"


@dataclass(frozen=True, kw_only=True)
class Start:
    job_id: str
    placement: Placement
    warning: str = ""
    """What is amiss with the place, for people; empty: nothing."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    starts: tuple[Start, ...] = ()
    preempts: tuple[str, ...] = ()
    resizes: tuple[tuple[str, int], ...] = ()
    """(job id, new number of workers)."""
    reservations: tuple[Start, ...] = ()
    reasons: Mapping[str, str] = field(default_factory=dict)
    """Why each job that does not start waits, by job id."""
    short: tuple[str, ...] = ()
    """Jobs that wait whose whole gang would not fit if nothing else ran: nodes are missing."""
    next_change_at: float | None = None
    """When the plan could differ though nothing else happened; None: never."""
