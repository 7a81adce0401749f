"""`orchestrator events` and `wait`: what happened to a job, and its end."""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Sequence
from datetime import datetime
from functools import partial
from typing import Any

from orchestrator.cli.logs import tell_trouble
from orchestrator.cli.parser import client_for, parser_for
from orchestrator.cli.screen import as_json, command, first_line
from orchestrator.client.connection import Verbs
from orchestrator.client.patience import AWAY, PATIENCE_S, patiently
from orchestrator.control.local import controller_alive
from orchestrator.errors import UserError
from orchestrator.events import Event
from orchestrator.job import Job, JobState

LOOK_S = 0.2
WAIT_S = 20.0
"""For news, in one question."""
TIMED_OUT, NOT_KNOWN = 124, 125
"""As of the command `timeout`."""


def events_(arguments: list[str]) -> int:
    parser = parser_for("events", "What happened to a job, in order.")
    parser.add_argument("job")
    parser.add_argument("-f", "--follow", action="store_true", help="until the job has ended")
    parser.add_argument("--after", type=int, default=0, metavar="N", help="those with a number above N")
    parser.add_argument("--json", action="store_true", help="one JSON object for each event: seq, kind, time_s, message, fields")
    asked = parser.parse_args(arguments)
    client = client_for(asked.home, asked.job)
    job, after = client.job(asked.job), asked.after
    more = True
    while more:
        told, ended = patiently(partial(client.next_events, job.id, after, WAIT_S if asked.follow else 0.0), tell_trouble)
        for number, event in told:
            print(as_json(event_to_dict(number, event)) if asked.json else event_line(event), flush=True)
            after = number
        more = not ended and (asked.follow or bool(told))
    if not asked.json:
        print(f"next: {command(f'logs {job.id}' if ended else f'events {job.id} -f', client.home)}")
    return 0


def event_to_dict(number: int, event: Event) -> dict[str, Any]:
    return {**dataclasses.asdict(event), "seq": number, "kind": event.kind.value}


def event_line(event: Event) -> str:
    return f"  {datetime.fromtimestamp(event.time_s):%Y-%m-%d %H:%M:%S}  {event.kind.value:<18} {first_line(event.message)}"


def wait_(arguments: list[str]) -> int:
    """Exit status 0: all succeeded; 1: one did not; 124: not all were known to have ended in time; 125: nobody says how they end."""
    parser = parser_for(
        "wait", "Until jobs have ended. Exit status 0: all succeeded, 1: one failed or was cancelled, 124: the time was up, "
        "125: without a --timeout, the server or the job store was away for two minutes.",
    )  # fmt: skip
    parser.add_argument("jobs", nargs="+", metavar="JOB")
    parser.add_argument("--timeout", type=float, default=None, metavar="SECONDS", help="wait so long at most")
    parser.add_argument("--json", action="store_true", help="a list of objects: id, state, end_reason, message, step")
    asked = parser.parse_args(arguments)
    if asked.timeout is not None and not asked.timeout >= 0:
        raise UserError(f"--timeout {asked.timeout} is not possible: allowed is 0 or more.")
    client = client_for(asked.home, asked.jobs[0])
    try:
        jobs = _until_ended(client, asked.jobs, asked.timeout)
    except AWAY as error:
        print(f"orchestrator: {error}", file=sys.stderr)
        return NOT_KNOWN if asked.timeout is None else TIMED_OUT
    if asked.json:
        print(as_json([_told(job) for job in jobs]))
    else:
        _say(client, jobs)
    if not all(job.state.terminal for job in jobs):
        return TIMED_OUT
    return 0 if all(job.state is JobState.SUCCEEDED for job in jobs) else 1


def _until_ended(client: Verbs, names: Sequence[str], timeout_s: float | None) -> list[Job]:
    """The jobs as they ended, or as they are when the time is up. Raises one of AWAY if that cannot be asked then."""
    limit, warned = None if timeout_s is None else time.monotonic() + timeout_s, False

    def asked(name: str) -> Job:
        patience_s = PATIENCE_S if limit is None else limit - time.monotonic()
        return patiently(partial(client.job, name), tell_trouble, patience_s)

    done = {job.id: job for job in map(asked, names)}
    while True:
        left_s = LOOK_S if limit is None else min(LOOK_S, limit - time.monotonic())
        if left_s <= 0 or all(job.state.terminal for job in done.values()):
            return list(done.values())
        if not warned and not client.remote and not controller_alive(client.home):
            print(f"no control plane runs in {client.home.root}: {command('up', client.home)} starts it", file=sys.stderr, flush=True)
            warned = True
        time.sleep(left_s)
        done = {job_id: job if job.state.terminal else asked(job_id) for job_id, job in done.items()}


def _told(job: Job) -> dict[str, Any]:
    end = job.result.end_reason.name.lower() if job.result else None
    return {"id": job.id, "state": job.state.value, "end_reason": end, "message": job.reason, "step": job.progress.step}


def _say(client: Verbs, jobs: Sequence[Job]) -> None:
    for job in jobs:
        print(f"{job.id}  {job.state.value}  {first_line(job.reason)}".rstrip())
    worst = next((job for job in jobs if job.state is JobState.FAILED), jobs[-1])
    print(f"next: {command(f'status {worst.id}', client.home)}")
