"""The cluster and its jobs as a page shows them: what is in use, by node and by tenant, and a part of each list of jobs.

A few columns of many rows, or whole rows of a few jobs: what it costs does not grow with the specs of ten thousand jobs that wait.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from orchestrator.control.planning.policy import chosen_policy
from orchestrator.control.reading.summary import JobSummary, summaries_where
from orchestrator.control.reading.totals import ACTIVE, Place, by_state, counts, places
from orchestrator.control.records import tables
from orchestrator.control.records.database import json_of
from orchestrator.control.records.store import JobStore
from orchestrator.control.scheduler import ClusterView
from orchestrator.control.scheduler.model import CPU_UNITS, Node
from orchestrator.job import JobState
from orchestrator.supervision.accounting import WAITS

MAX_NODES = 1000
"""That are told one by one."""
LISTS: dict[str, tuple[JobState, ...]] = {
    "running": tuple(state for state in JobState if state.active),
    "waiting": (JobState.QUEUED,),
    "ended": tuple(state for state in JobState if state.terminal),
}


@dataclass(frozen=True, kw_only=True)
class Window:
    """Which part of each list."""

    find: str = ""
    """Only jobs with this in their id, user or tenant, in small or capital letters."""
    limit: int = 50
    offsets: Mapping[str, int]
    """By the name of the list."""


def overview(store: JobStore, cluster: ClusterView, window: Window) -> dict[str, Any]:
    """JSON-ready. Times are seconds since 1970, and nothing in it changes while nothing happens."""
    quotas = {name: tenant.quota for name, tenant in chosen_policy(store).policy.tenants.items()}
    with store.engine.connect() as connection:
        counted, placed = counts(connection), places(connection)
        lists = {name: _list(connection, name, states, window) for name, states in LISTS.items()}
    return {
        "cluster": _cluster(cluster.nodes, placed), "nodes": _nodes(cluster.nodes, placed)[:MAX_NODES],
        "tenants": _tenants(counted, placed, quotas), "jobs": by_state(counted), **lists,
    }  # fmt: skip


def _cluster(nodes: Sequence[Node], places: Sequence[Place]) -> dict[str, Any]:
    return {
        "nodes": len(nodes), "draining": sum(node.draining for node in nodes),
        "gpus": sum(node.gpus for node in nodes), "gpus_used": sum(place.gpus * place.workers for place in places),
        "cpus": sum(node.cpu_units for node in nodes) / CPU_UNITS, "cpus_used": sum(place.cpus * place.workers for place in places),
    }  # fmt: skip


def _nodes(nodes: Sequence[Node], places: Sequence[Place]) -> list[dict[str, Any]]:
    gpus, jobs, cpus = Counter[str](), Counter[str](), defaultdict[str, float](float)
    for place in places:
        for node, workers in place.placement:
            gpus[node] += workers * place.gpus
            cpus[node] += workers * place.cpus
            jobs[node] += 1
    return [
        {
            "name": node.name, "gpus": node.gpus, "gpus_used": gpus[node.id], "cpus": node.cpu_units / CPU_UNITS,
            "cpus_used": cpus[node.id], "jobs": jobs[node.id], "draining": node.draining, "standing": node.standing.name.lower(),
        }
        for node in sorted(nodes, key=lambda node: (node.name, node.id))
    ]  # fmt: skip


def _tenants(
    counts: Mapping[tuple[str, str], int], places: Sequence[Place], quotas: Mapping[str, int | None]
) -> list[dict[str, Any]]:
    """Those with jobs that have not ended, the largest first."""
    live = {tenant for (tenant, state), count in counts.items() if count and not JobState(state).terminal}
    found = []
    for tenant in live:
        mine = [place for place in places if place.tenant == tenant]
        found.append({
            "tenant": tenant, "running": sum(counts.get((tenant, state), 0) for state in ACTIVE),
            "waiting": counts.get((tenant, JobState.QUEUED.value), 0), "gpus_used": sum(place.gpus * place.workers for place in mine),
            "cpus_used": sum(place.cpus * place.workers for place in mine), "quota": quotas.get(tenant),
        })  # fmt: skip
    return sorted(found, key=lambda row: (-row["gpus_used"], -row["cpus_used"], -row["waiting"], row["tenant"]))


def _list(connection: sa.Connection, name: str, states: Sequence[JobState], window: Window) -> dict[str, Any]:
    """A part of one list: `{"jobs": [...], "total": how many there are, "offset": of the first}`."""
    table, offset = tables.jobs.c, window.offsets.get(name, 0)
    fitting: sa.ColumnElement[bool] = table.state.in_([state.value for state in states])
    if window.find:
        columns = (table.id, table.user, table.tenant)
        fitting = sa.and_(fitting, sa.or_(*(column.icontains(window.find, autoescape=True) for column in columns)))
    total = int(connection.execute(sa.select(sa.func.count()).select_from(tables.jobs).where(fitting)).scalar() or 0)
    page = sa.select(table.id).where(fitting).order_by(*_ORDERS[name]).limit(window.limit).offset(offset)
    ids = list(connection.execute(page).scalars())
    summaries = {job.id: job for job in summaries_where(connection, tables.jobs, tables.jobs.c.id.in_(ids))} if ids else {}
    more = _more(connection, ids) if ids else {}
    return {"jobs": [_row(summaries[job_id], more[job_id]) for job_id in ids if job_id in summaries], "total": total, "offset": offset}


def _more(connection: sa.Connection, ids: Sequence[str]) -> dict[str, dict[str, Any]]:
    """What a summary does not have, by id."""
    table = tables.jobs.c
    priority = json_of(connection, table.spec)[("scheduling", "priority")].as_integer().label("priority")
    query = sa.select(table.id, table.start_s, table.reserved_s, table.order, table.progress, priority).where(table.id.in_(ids))
    return {row["id"]: dict(row) for row in connection.execute(query).mappings()}


def _row(job: JobSummary, more: Mapping[str, Any]) -> dict[str, Any]:
    progress, order = job.progress, more["order"] or {}
    acquired, needed = job.gpus
    pace = progress.tokens_per_s or progress.samples_per_s
    return {
        "id": job.id, "state": job.state.value, "user": job.user, "tenant": job.tenant, "workload": job.workload,
        "priority": more["priority"] or 0, "workers": job.num_placed, "workers_asked": job.num_workers, "gpus": acquired,
        "gpus_asked": needed, "step": progress.step, "max_steps": job.max_steps, "loss": progress.loss, "pace": pace,
        "pace_of": "tokens" if progress.tokens_per_s else "samples" if pace else "", "phase": progress.phase,
        "ends_s": progress.updated_s + progress.eta_s if progress.eta_s is not None and progress.updated_s else None,
        "goodput": _goodput(more["progress"].get("ledger", {})), "recoveries": job.recoveries, "submitted_s": job.submitted_s,
        "waits_since_s": max(job.queued_s, progress.waits_since_s), "started_s": job.started_s, "ended_s": job.ended_s,
        "position": job.position or 0, "start_s": more["start_s"], "reserved": more["reserved_s"] is not None,
        "reason": job.reason.partition("\n")[0], "stop_requested": job.stop_requested,
        "leaving": order.get("kind") == "preempt" and not order.get("left"),
    }  # fmt: skip


def _goodput(ledger: Mapping[str, Any]) -> float | None:
    """Share of the time in which a job held its place that went into training steps; None before it ever did."""
    seconds = ledger.get("seconds", {})
    held_s = ledger.get("worker_s", 0.0) - sum(seconds.get(bucket.value, 0.0) for bucket in WAITS)
    return float(ledger["goodput_share"]) if held_s > 0 else None


_ORDERS: dict[str, Sequence[Any]] = {
    "running": (tables.jobs.c.started_s, tables.jobs.c.id),
    "waiting": (
        sa.case((tables.jobs.c.position == 0, 1), else_=0), tables.jobs.c.position, tables.jobs.c.queued_s, tables.jobs.c.id,
    ),
    "ended": (tables.jobs.c.ended_s.desc(), tables.jobs.c.id),
}  # fmt: skip
