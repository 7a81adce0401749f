"""`orchestrator prune`: packaged code that no job has any more."""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Iterable
from typing import Any

from orchestrator.cli.parser import parser_for
from orchestrator.cli.screen import as_json, command, size
from orchestrator.errors import StorageError
from orchestrator.job import Job
from orchestrator.paths import Home
from orchestrator.spec import StorageSpec

_DAY_S = 86400.0


def prune_(arguments: list[str]) -> int:
    from orchestrator.code.garbage import GRACE_S, Pruned, prune_packages
    from orchestrator.control.client import Client
    from orchestrator.control.records import database
    from orchestrator.storage import open_store

    parser = parser_for("prune", "Delete packaged code that no job of this home has had for a while, from the stores of its jobs.")
    parser.add_argument("--grace-days", type=float, default=GRACE_S / _DAY_S, metavar="N", help="for so long; default: %(default)g")
    parser.add_argument("--dry-run", action="store_true", help="only say so")
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args(arguments)
    home = Home.find(asked.home)
    jobs = Client(home).jobs() if database.exists(home) else []
    used, known = {job.spec.workload.package for job in jobs}, {job.id for job in jobs}
    rows: list[dict[str, Any]] = []
    for storage in _stores(home, jobs):
        try:
            found = prune_packages(open_store(storage, os.environ), used, known, time.time(), asked.grace_days * _DAY_S, asked.dry_run)
            rows.append({"store": storage.url, **dataclasses.asdict(found), "error": ""})
        except StorageError as error:  # the next store may answer
            rows.append({"store": storage.url, **dataclasses.asdict(Pruned()), "error": str(error)})
    if asked.json:
        print(as_json(rows))
    else:
        _show(rows, asked.grace_days, asked.dry_run, command("prune", home))
    return 1 if any(row["error"] for row in rows) else 0


def _stores(home: Home, jobs: Iterable[Job]) -> Iterable[StorageSpec]:
    """That of the home, and those that its jobs name."""
    named = [StorageSpec(url=home.store.as_uri()), *(job.spec.storage for job in jobs)]
    return {(storage.url, storage.endpoint_url): storage for storage in named}.values()


def _show(rows: list[dict[str, Any]], grace_days: float, dry_run: bool, again: str) -> None:
    for row in rows:
        used, doomed, deleted = (_counted(row[name]) for name in ("used", "doomed", "deleted"))
        print(f"{row['store']}: {row['error'] or f'{used} in use; {deleted} ' + ('would be deleted' if dry_run else 'deleted')}")
        if row["doomed"]:
            print(f"  {doomed} that no job has: kept for {grace_days:g} days from the first look on")
    if not dry_run and any(row["doomed"] for row in rows):
        print(f"next, when the time is over: {again}")


def _counted(packages: dict[str, int]) -> str:
    return f"{len(packages)} package{'' if len(packages) == 1 else 's'} ({size(sum(packages.values()))})"
