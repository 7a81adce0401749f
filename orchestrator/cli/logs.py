"""`orchestrator logs`: what the ranks of a job printed."""

from __future__ import annotations

import argparse
import re
import sys
import time
from collections.abc import Iterator
from datetime import datetime

from orchestrator.cli.parser import client_for, parser_for
from orchestrator.cli.screen import as_json, command
from orchestrator.client.connection import Verbs
from orchestrator.client.lines import Line
from orchestrator.client.reader import ServerReader
from orchestrator.control.reading.logs import LogLine, LogReader, follow
from orchestrator.errors import ClusterError, OrchestratorError, StoreUnavailable, UserError
from orchestrator.job import Job
from orchestrator.storage import open_store

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}


def logs_(arguments: list[str]) -> int:
    asked = _arguments(arguments)
    since_s = _since(asked.since, time.time()) if asked.since else None
    client = client_for(asked.home, asked.job)
    job = client.job(asked.job)
    reader = _reader(client, job, asked)
    seen = False
    for line in _lines(asked, client, job.id, reader, since_s):
        seen = True
        print(_shown(line, asked), flush=True)
    if not seen and not asked.json:
        _say_why_nothing(client, job.id)
    return 0


def _reader(client: Verbs, job: Job, asked: argparse.Namespace) -> LogReader | ServerReader:
    """Of the object store, or of a server, whose files are not to be found here."""
    if client.remote:
        return ServerReader(client, job.id, asked.rank, asked.after, offsets=asked.json)
    return LogReader(open_store(job.spec.storage), job.id, asked.rank, asked.after)


def _arguments(arguments: list[str]) -> argparse.Namespace:
    parser = parser_for("logs", "What the ranks printed, over all restarts, each line once.")
    parser.add_argument("job")
    parser.add_argument("-f", "--follow", action="store_true", help="until the job has ended")
    parser.add_argument("--rank", type=int, default=None, help="of one rank only")
    parser.add_argument("--tail", type=int, default=None, metavar="N", help="the last N lines only, and with -f what comes after them")
    parser.add_argument("--since", default="", metavar="TIME", help="what was printed since: 90s, 10m, 2h, 3d ago, or 2026-01-31T12:00")
    parser.add_argument("--after", default="", metavar="OFFSET", help="what comes after the line that --json gave this offset")
    parser.add_argument("--json", action="store_true", help="one JSON object for each line: rank, epoch, time_s, text, offset")
    asked = parser.parse_args(arguments)
    if asked.tail is not None and asked.tail < 1:
        raise UserError(f"--tail {asked.tail} is not possible: allowed is 1 or more.")
    if asked.rank is not None and asked.rank < 0:
        raise UserError(f"--rank {asked.rank} is not possible: allowed is 0 or more.")
    return asked


def _lines(
    asked: argparse.Namespace, client: Verbs, job_id: str, reader: LogReader | ServerReader, since_s: float | None
) -> Iterator[LogLine | Line]:
    def ended() -> bool:
        try:
            return client.job(job_id).state.terminal
        except (ClusterError, StoreUnavailable) as error:
            tell_trouble(error)
            return False

    if asked.tail is not None or since_s is not None:
        reader.skip(asked.tail, since_s)
    if asked.tail is not None:
        yield from reader.last(asked.tail, ended() or not asked.follow)
    if asked.follow:
        yield from follow(reader, ended, tell_trouble)
    elif asked.tail is None:
        yield from reader.lines(ended=True)


def tell_trouble(error: OrchestratorError) -> None:
    print(f"orchestrator: {error}; trying again", file=sys.stderr, flush=True)


def _shown(line: LogLine | Line, asked: argparse.Namespace) -> str:
    if asked.json:
        values = {"rank": line.rank, "epoch": line.epoch, "time_s": line.time_s or None, "text": line.text, "offset": line.offset}
        return as_json(values)
    return line.text if asked.rank is not None else f"[rank {line.rank}] {line.text}"


def _say_why_nothing(client: Verbs, job_id: str) -> None:
    """On stderr: there is no output."""
    job = client.job(job_id)
    near = f"its state: {command(f'status {job_id}', client.home)}" if job.state.terminal else command(f"logs -f {job_id}", client.home)
    print(f"{job_id} has printed nothing that is asked for; {near}", file=sys.stderr)


def _since(text: str, now: float) -> float:
    """Seconds since 1970."""
    if ago := re.fullmatch(r"(\d+(?:\.\d+)?)([smhd])", text):
        return now - float(ago[1]) * _UNITS[ago[2]]
    try:
        return datetime.fromisoformat(text).timestamp()
    except ValueError:
        allowed = "90s, 10m, 2h, 3d, or a time such as 2026-01-31T12:00"
        raise UserError(f"--since {text} is not possible: allowed is {allowed}.") from None
