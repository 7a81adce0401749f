"""A trace of jobs from a CSV file: one line for each job, under a header that names the columns.

    job_id        any text, each once
    submit_s      seconds since any moment, the same for all
    num_gpus      whole number, at least 1
    duration_s    run time on that many GPUs without interruption; time in the queue is no part of it
    user, vc      who submitted it, and for which tenant (virtual cluster)
    status        how it ended; only kept
    priority      whole number, optional: a class that comes before all lower ones
    limit_s       optional: run time that its user allows it
    sizes         optional: legal numbers of GPUs beside `num_gpus`, with spaces between them

An empty field is not in the source; the first four columns are never empty. Whatever is wrong is one DataError with line, field and reason.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from orchestrator.errors import DataError, nearest
from orchestrator.simulation.model import TraceJob

REQUIRED = ("job_id", "submit_s", "num_gpus", "duration_s", "user", "vc", "status")
OPTIONAL = ("priority", "limit_s", "sizes")

Why = Callable[[TraceJob], str | None]
"""Why a job can never run; None: it can."""


def read_trace(path: Path, why_never: Why = lambda job: None) -> tuple[TraceJob, ...]:
    """The jobs in the order of their submission, the first at 0 s. Raises DataError, also where `why_never` has a reason."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            return parse_trace(file, str(path), why_never)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}.") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is no text in UTF-8: byte {error.object[error.start]:#04x} at {error.start}.") from error


def parse_trace(lines: Iterable[str], name: str, why_never: Why = lambda job: None) -> tuple[TraceJob, ...]:
    """As `read_trace`, of lines that are here already; `name` stands in what is refused."""
    rows = csv.reader(lines, strict=True)
    try:
        columns = _header(next(rows, []), name)
        return from_zero(_jobs(rows, columns, name, why_never))
    except csv.Error as error:
        raise DataError(f"{name} line {rows.line_num}: {error}.") from error


def from_zero(jobs: Iterable[TraceJob]) -> tuple[TraceJob, ...]:
    """In the order of submission, of equal times in the order given; the first is submitted at 0 s."""
    ordered = sorted(jobs, key=lambda job: job.submit_s)
    return tuple(replace(job, submit_s=job.submit_s - ordered[0].submit_s) for job in ordered)


def _header(found: list[str], name: str) -> list[str]:
    columns = [column.strip() for column in found]
    known = (*REQUIRED, *OPTIONAL)
    for column in columns:
        if column not in known:
            raise DataError(f"{name} line 1: '{column}' is no column. Known: {', '.join(known)}.{nearest(column, known)}")
        if columns.count(column) > 1:
            raise DataError(f"{name} line 1: column '{column}' is there twice.")
    missing = [column for column in REQUIRED if column not in columns]
    if missing:
        raise DataError(f"{name} line 1: column '{missing[0]}' is missing. Needed: {', '.join(REQUIRED)}; a field may be empty.")
    return columns


def _jobs(rows: Any, columns: list[str], name: str, why_never: Why) -> list[TraceJob]:
    """`rows`: what `csv.reader` gives, behind the header."""
    jobs: list[TraceJob] = []
    line_of: dict[str, int] = {}
    for row in rows:
        if not row:
            continue
        where = f"{name} line {rows.line_num}"
        if len(row) != len(columns):
            raise DataError(f"{where}: {len(row)} fields, the header has {len(columns)}.")
        job = _job(dict(zip(columns, row, strict=True)), where)
        if job.id in line_of:
            raise DataError(f"{where}: job_id={job.id} is there already, in line {line_of[job.id]}.")
        if why := why_never(job):
            raise DataError(f"{where}: num_gpus={job.gpus} can never run: {why}.")
        line_of[job.id] = rows.line_num
        jobs.append(job)
    if not jobs:
        raise DataError(f"{name}: no job in it.")
    return jobs


def _job(fields: dict[str, str], where: str) -> TraceJob:
    read = _Fields(fields, where)
    gpus = read.whole("num_gpus", least=1)
    return TraceJob(
        id=read.text("job_id"), submit_s=read.seconds("submit_s"), gpus=gpus, duration_s=read.seconds("duration_s"),
        tenant=fields["vc"].strip(), user=fields["user"].strip(), status=fields["status"].strip(),
        priority=read.whole("priority") if read.has("priority") else 0,
        limit_s=read.seconds("limit_s") if read.has("limit_s") else None,
        sizes=read.sizes(gpus),
    )  # fmt: skip


class _Fields:
    """Of one line."""

    def __init__(self, fields: dict[str, str], where: str) -> None:
        self._fields, self._where = fields, where

    def has(self, column: str) -> bool:
        return bool(self._fields.get(column, "").strip())

    def text(self, column: str) -> str:
        value = self._fields[column].strip()
        if not value:
            raise DataError(f"{self._where}: {column} is empty.")
        return value

    def seconds(self, column: str) -> float:
        text = self.text(column)
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not 0 <= value < math.inf:
            raise self._wrong(column, text, "seconds, at least 0")
        return value

    def whole(self, column: str, least: int | None = None) -> int:
        text = self.text(column)
        value = _whole(text)
        if value is None or (least is not None and value < least):
            raise self._wrong(column, text, "a whole number" + ("" if least is None else f" of at least {least}"))
        return value

    def sizes(self, gpus: int) -> tuple[int, ...]:
        text = self._fields.get("sizes", "").strip()
        found = {_whole(word) for word in text.split()}
        if any(size is None or size < 1 for size in found):
            raise self._wrong("sizes", text, "whole numbers of at least 1 with spaces between them")
        return tuple(sorted(size for size in {*found, gpus} if size is not None)) if found else ()

    def _wrong(self, column: str, text: str, allowed: str) -> DataError:
        return DataError(f"{self._where}: {column}={text} is not possible: allowed is {allowed}.")


def _whole(text: str) -> int | None:
    try:
        return int(text)
    except ValueError:
        return None
