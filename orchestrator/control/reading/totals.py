"""How many jobs there are and what those take that hold a place: a few columns, of jobs that have ended only their number."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import sqlalchemy as sa

from orchestrator.control.records import tables
from orchestrator.control.records.database import json_of
from orchestrator.job import JobState

ACTIVE = [state.value for state in JobState if state.active]


@dataclass(frozen=True, kw_only=True)
class Place:
    """What a job that holds a place takes."""

    tenant: str
    state: str
    gpus: int
    """Of each worker."""
    cpus: float
    """Of each worker."""
    placement: Sequence[tuple[str, int]]

    @property
    def workers(self) -> int:
        return sum(workers for _, workers in self.placement)


@dataclass(frozen=True, kw_only=True)
class Totals:
    jobs: Mapping[tuple[str, str], int]
    """By (tenant, state)."""
    places: Sequence[Place]
    queued_since_s: float | None
    """Of the job that has waited longest (seconds since 1970); None: nobody waits."""


def totals(engine: sa.Engine) -> Totals:
    table = tables.jobs.c
    longest = sa.select(sa.func.min(table.queued_s)).where(table.state == JobState.QUEUED.value)
    with engine.connect() as connection:
        return Totals(jobs=counts(connection), places=places(connection), queued_since_s=connection.execute(longest).scalar())


def counts(connection: sa.Connection) -> dict[tuple[str, str], int]:
    """By (tenant, state)."""
    table = tables.jobs.c
    query = sa.select(table.tenant, table.state, sa.func.count()).group_by(table.tenant, table.state)
    return {(tenant, state): count for tenant, state, count in connection.execute(query)}


def by_state(counted: Mapping[tuple[str, str], int]) -> dict[str, int]:
    """Of `counts`, over all tenants."""
    return {state.value: sum(count for (_, name), count in counted.items() if name == state.value) for state in JobState}


def places(connection: sa.Connection) -> list[Place]:
    table = tables.jobs.c
    spec = json_of(connection, table.spec)
    gpus, cpus = (spec[("resources", name)].as_float() for name in ("gpus_per_worker", "cpus_per_worker"))
    query = sa.select(table.tenant, table.state, table.placement, gpus, cpus).where(table.state.in_(ACTIVE))
    return [
        Place(tenant=tenant, state=state, gpus=int(gpus), cpus=cpus, placement=placement)
        for tenant, state, placement, gpus, cpus in connection.execute(query)
    ]
