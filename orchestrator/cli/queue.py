"""The verbs about who runs next: `queue`, `explain`, `priority`."""

from __future__ import annotations

import time
from datetime import datetime

from orchestrator.cli.parser import client_for, parser_for, verbs_of
from orchestrator.cli.screen import as_json, command, duration, table
from orchestrator.control.reading.questions import Explained, QueueRow
from orchestrator.job import JobState
from orchestrator.paths import Home


def queue_(arguments: list[str]) -> int:
    parser = parser_for("queue", "The jobs that wait, who is next first: why, and when they start.")
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args(arguments)
    home = Home.find(asked.home)
    verbs = verbs_of(home)
    rows = verbs.queue() if verbs else []
    if asked.json:
        print(as_json([row.to_dict() for row in rows]))
    elif rows:
        now = time.time()
        shown = [_cells(row, now) for row in rows]
        print(table(("#", "JOB", "TENANT", "PRIORITY", "WORKERS", "WAITS", "STARTS", "WHY"), shown))
        print(f"next: {command('explain JOB', home)}")
    else:
        print(f"no job waits in {home.root}")
    return 0


def explain_(arguments: list[str]) -> int:
    parser = parser_for("explain", "Why a job waits, who holds what it needs, when it starts, and what would let it start now.")
    parser.add_argument("job")
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args(arguments)
    client = client_for(asked.home, asked.job)
    found = client.explain(client.job(asked.job).id)
    if asked.json:
        print(as_json(found.to_dict()))
    else:
        print("\n".join(_sentences(found, client.home, time.time())))
    return 0


def priority_(arguments: list[str]) -> int:
    parser = parser_for("priority", "Change the priority of a job that waits or runs: a higher class comes before all lower ones.")
    parser.add_argument("job")
    parser.add_argument("priority", type=int, metavar="N", help="a whole number; the default of a job is 0")
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_intermixed_args(arguments)
    client = client_for(asked.home, asked.job)
    job = client.set_priority(client.job(asked.job).id, asked.priority)
    if asked.json:
        print(as_json({"id": job.id, "state": job.state.value, "priority": job.spec.scheduling.priority}))
    else:
        print(f"{job.id} has priority {job.spec.scheduling.priority}")
        if job.state is JobState.QUEUED:
            print(f"next: {command(f'explain {job.id}', client.home)}")
    return 0


def _cells(row: QueueRow, now: float) -> tuple[str, ...]:
    starts = "-" if row.start_s is None else f"in {duration(max(0.0, row.start_s - now))}"
    return (
        str(row.position or "-"), row.job_id, row.tenant or "-", str(row.priority), str(row.num_workers), duration(now - row.waits_since_s),
        starts + (" (reserved)" if row.reserved and row.start_s is not None else ""), row.reason.partition("\n")[0],
    )  # fmt: skip


def _sentences(found: Explained, home: Home, now: float) -> list[str]:
    if found.state != JobState.QUEUED.value:
        return [f"{found.job_id} does not wait: it is {found.state}" + (f"; {found.reason}" if found.reason else "")]
    lines = [f"{found.job_id} {'starts now' if not found.position and found.start_s else found.reason}"]
    if found.position:
        lines.append(f"  position      {found.position} in the order of those that wait")
    if found.holders:
        lines.append(f"  held by       {', '.join(found.holders)}: when they have ended it has a place")
    if found.start_s is not None and found.position:
        when = datetime.fromtimestamp(found.start_s)
        how = "reserved" if found.reserved else "predicted, if nobody else comes"
        lines.append(f"  starts        in {duration(max(0.0, found.start_s - now))}, at {when:%Y-%m-%d %H:%M} ({how})")
    if found.with_workers:
        change = command(f"resume {found.job_id} resources.num_workers={found.with_workers}", home)
        lines.append(f"  would start now with {found.with_workers} of {found.num_workers} workers (cancel it, then {change})")
    if found.at_priority is not None:
        change = command(f"priority {found.job_id} {found.at_priority}", home)
        lines.append(f"  would start, or have a place cleared for it, now at priority {found.at_priority}: {change}")
    return lines
