"""What a list shows of a job: a few columns, read without its whole spec."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from orchestrator.job import JobState, Progress, progress_from_dict, progress_to_dict

if TYPE_CHECKING:
    import sqlalchemy as sa

TERMINAL = [state.value for state in JobState if state.terminal]
PLAIN = ("id", "state", "run", "submitted_s", "queued_s", "started_s", "ended_s", "reason", "stop_requested", "user", "tenant")


@dataclass(frozen=True, kw_only=True)
class JobSummary:
    """Of one job. Times are seconds since 1970."""

    id: str
    state: JobState
    run: int
    submitted_s: float
    queued_s: float
    started_s: float | None
    ended_s: float | None
    reason: str
    stop_requested: str
    workload: str
    num_workers: int
    """As asked for."""
    gpus_per_worker: float
    max_steps: int
    num_placed: int
    """Workers that have a place."""
    progress: Progress
    """Without its ledger, the most of it."""
    position: int | None = None
    """In the scheduler's order, from 1; None: it does not wait, or is not known."""
    user: str = ""
    tenant: str = ""

    @property
    def share(self) -> float:
        """Of its steps that are done, from 0 to 1; of a job that starts again, those that it goes on from."""
        return min(1.0, max(self.progress.step, self.progress.committed_step or 0) / max(1, self.max_steps))

    @property
    def gpus(self) -> tuple[int, int]:
        """(acquired, needed)."""
        return int(self.num_placed * self.gpus_per_worker), int(self.num_workers * self.gpus_per_worker)

    @property
    def recoveries(self) -> int:
        """How often it went on after a failure or a preemption."""
        return self.progress.restarts + self.progress.preemptions

    def eta_s(self, now: float) -> float | None:
        """Seconds until its last step, at its pace."""
        if self.progress.eta_s is None or not self.state.active:
            return None
        return max(0.0, self.progress.eta_s - max(0.0, now - self.progress.updated_s)) if self.progress.updated_s else self.progress.eta_s

    def to_dict(self, now: float) -> dict[str, Any]:
        """JSON-ready."""
        values = {item.name: getattr(self, item.name) for item in dataclasses.fields(self)}
        acquired, needed = self.gpus
        return {
            **values, "state": self.state.value, "progress": progress_to_dict(self.progress), "percent": round(100 * self.share, 1),
            "eta_s": self.eta_s(now), "gpus_acquired": acquired, "gpus_needed": needed, "recoveries": self.recoveries,
        }  # fmt: skip


def read_summaries(connection: sa.Connection, jobs: sa.Table, states: Collection[JobState] | None, limit: int) -> list[JobSummary]:
    """In the order of submission. Of more than `limit` (0: none) those that have not ended, then the newest."""
    import sqlalchemy as sa  # who reads the list without it does not wait for its import

    chosen = sa.select(jobs.c.id)
    if states is not None:
        chosen = chosen.where(jobs.c.state.in_([state.value for state in states]))
    if limit:
        chosen = chosen.order_by(sa.case((jobs.c.state.in_(TERMINAL), 1), else_=0), jobs.c.submitted_s.desc()).limit(limit)
    return summaries_where(connection, jobs, jobs.c.id.in_(chosen))


def summaries_where(connection: sa.Connection, jobs: sa.Table, which: sa.ColumnElement[bool]) -> list[JobSummary]:
    """In the order of submission."""
    import sqlalchemy as sa

    spec = sa.cast(jobs.c.spec, sa.JSON) if connection.dialect.name == "postgresql" else sa.type_coerce(jobs.c.spec, sa.JSON)
    columns = [
        *(jobs.c[name] for name in (*PLAIN, "position", "progress", "placement")),
        spec[("workload", "name")].as_string().label("workload"),
        spec[("resources", "num_workers")].as_integer().label("num_workers"),
        spec[("resources", "gpus_per_worker")].as_float().label("gpus_per_worker"),
        spec[("training", "max_steps")].as_integer().label("max_steps"),
    ]
    query = sa.select(*columns).where(which).order_by(jobs.c.submitted_s, jobs.c.id)
    return [summary_of(dict(row)) for row in connection.execute(query).mappings()]


def summary_of(row: dict[str, Any]) -> JobSummary:
    """`row`: the columns of `read_summaries`, with values as a job has them."""
    state = JobState(row["state"])
    placed = sum(workers for _, workers in row.pop("placement"))
    position = row.pop("position")
    return JobSummary(
        **{**row, "state": state, "progress": progress_from_dict({**row["progress"], "ledger": {}})}, num_placed=placed,
        position=position or None if state is JobState.QUEUED else None,
    )  # fmt: skip
