"""The list of the jobs in a file of SQLite, read without SQLAlchemy, whose import alone takes longer than a person waits for a list.

It gives what `JobStore.summaries` and `count` give; a test holds the two together. Where it does not know its way it gives None.
"""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Collection
from typing import Any

from orchestrator.control.schema import SCHEMA_VERSION
from orchestrator.control.summary import PLAIN, TERMINAL, JobSummary, summary_of
from orchestrator.job import JobState
from orchestrator.paths import Home

ELSEWHERE = ("ORCHESTRATOR_SERVER", "ORCHESTRATOR_DATABASE")
"""Variables that name another place for jobs than the file."""
_BUSY_LIMIT_S = 20.0
_OF_SPEC = {"workload": "workload.name", "num_workers": "resources.num_workers", "gpus_per_worker": "resources.gpus_per_worker",
            "max_steps": "training.max_steps"}  # fmt: skip

Found = tuple[list[JobSummary], int]


def quick_list(home: Home, states: Collection[JobState] | None, limit: int) -> Found | None:
    """(what a list shows, how many jobs there are of these states), or None: ask the job store itself."""
    if any(os.environ.get(name) for name in ELSEWHERE) or home.database.exists() or not home.jobs_db.exists():
        return None
    try:
        connection = sqlite3.connect(f"{home.jobs_db.as_uri()}?mode=ro", uri=True, timeout=_BUSY_LIMIT_S)
        try:
            return _read(connection, states, limit)
        finally:
            connection.close()
    except sqlite3.Error:
        return None  # the store itself says in words what is wrong


def _read(connection: sqlite3.Connection, states: Collection[JobState] | None, limit: int) -> Found | None:
    connection.row_factory = sqlite3.Row
    held = connection.execute("SELECT value FROM meta WHERE key = 'schema_version'").fetchone()
    if held is None or json.loads(held["value"]) != SCHEMA_VERSION:
        return None
    asked = [state.value for state in states or ()]
    only = "" if states is None else f"WHERE state IN ({_marks(asked)})"
    first = f"ORDER BY state IN ({_marks(TERMINAL)}), submitted_s DESC LIMIT {int(limit)}" if limit else ""
    plain = ", ".join(f'"{name}"' for name in (*PLAIN, "position", "progress", "placement"))
    of_spec = ", ".join(f"json_extract(spec, '$.{path}') AS {name}" for name, path in _OF_SPEC.items())
    chosen = f"SELECT id FROM jobs {only} {first}"
    query = f"SELECT {plain}, {of_spec} FROM jobs WHERE id IN ({chosen}) ORDER BY submitted_s, id"
    rows = connection.execute(query, [*asked, *(TERMINAL if limit else ())]).fetchall()
    total = connection.execute(f"SELECT count(*) FROM jobs {only}", asked).fetchone()[0]
    return [summary_of(_decoded(row)) for row in rows], int(total)


def _marks(values: Collection[Any]) -> str:
    return ", ".join("?" for _ in values)


def _decoded(row: sqlite3.Row) -> dict[str, Any]:
    decoded = {name: json.loads(row[name]) for name in ("progress", "placement")}
    return {**dict(row), **decoded, "gpus_per_worker": float(row["gpus_per_worker"])}
