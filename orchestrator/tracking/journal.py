"""The journal: what a job tells the world, written down before anybody is told. Append-only JSON lines, one writer.

The supervisor appends; the tracking writer (`orchestrator.tracking.writer`) reads the file and delivers it to MLflow. A record is
`{"seq": 1, 2, 3 ..., "time_s": seconds since 1970, "kind": ..., fields}`:

    params     values                 settings, logged once
    tags       values                 shown beside the run
    metrics    step, values           training metrics of a log step
    evaluated  step, values           figures of the validation split
    ledger     step, values, ledger   the goodput ledger up to now; `step` is in seconds of wall time, `values` are for the tracking server
    event      event, message, ...    something worth remembering; `event` is an EventKind's value
    rewind     step                   training goes on from `step`: all rows of later steps written before are void
    artifact   name                   the object `artifacts/<name>` was written
    model      name, source, step, job_id   the checkpoint under `source` is to be a version of the model `name`
    end        status                 FINISHED, FAILED or KILLED; its other fields become tags
    resumed                           added when the journal of a job that had ended is opened again

Durability: `append` survives the death of the process, `flush` that of the machine, `ship` the loss of the machine. **Ship before
a commit becomes valid, never after**: then every row up to a committed step is in the object store, and a job that goes on from the
commit on another machine has no hole in its curves. Numbers may be NaN or infinite (Python's JSON dialect).
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.errors import CorruptObject, StorageFull, nearest

if TYPE_CHECKING:
    from orchestrator.paths import JobKeys
    from orchestrator.storage import ObjectStore

Record = dict[str, Any]
FIELDS: Mapping[str, frozenset[str]] = {
    "params": frozenset({"values"}),
    "tags": frozenset({"values"}),
    "metrics": frozenset({"step", "values"}),
    "evaluated": frozenset({"step", "values"}),
    "ledger": frozenset({"step", "values", "ledger"}),
    "event": frozenset({"event"}),
    "rewind": frozenset({"step"}),
    "artifact": frozenset({"name"}),
    "model": frozenset({"name", "source", "step", "job_id"}),
    "end": frozenset({"status"}),
    "resumed": frozenset(),
}
"""By kind: the fields that a record must have."""
END_STATUSES = ("FINISHED", "FAILED", "KILLED")


class Journal:
    """The writer's side. The file at `path` is opened, or rebuilt from the object store when that knows more or other."""

    def __init__(self, path: Path, store: ObjectStore, keys: JobKeys, clock: Callable[[], float] = time.time) -> None:
        """Drops a torn last line. Raises the StorageError of a store that cannot be read."""
        self.path = path
        self._store = store
        self._keys = keys
        self._clock = clock
        shipped = list(read_segments(store, keys, newest_only=True))
        lines = _complete_lines(path)
        if shipped and not _holds(lines, shipped[-1]):
            lines = [_encode(record) for record in read_segments(store, keys)]
        _replace(path, b"".join(lines))
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND)
        self._size = sum(map(len, lines))
        self._seq = _decode(lines[-1], str(path))["seq"] if lines else 0
        self._unshipped = lines[shipped[-1]["seq"] :] if shipped else lines
        if lines and _decode(lines[-1], str(path))["kind"] == "end":
            self.append("resumed")

    @property
    def last_seq(self) -> int:
        return self._seq

    def append(self, kind: str, **fields: Any) -> int:
        """Write one record and return its seq. `fields` are JSON values; a `time_s` among them replaces the present time."""
        _check(kind, fields)
        line = _encode({"seq": self._seq + 1, "time_s": self._clock(), "kind": kind, **fields})
        self._write(line)
        self._seq += 1
        self._unshipped.append(line)
        return self._seq

    def rewind(self, step: int) -> int:
        """Void every row of a step after `step` written so far: the job goes on from the commit of that step."""
        return self.append("rewind", step=step)

    def flush(self) -> None:
        os.fsync(self._file)

    def ship(self) -> None:
        """Put what is new since the last time into the object store, as one segment named by its first seq.

        Raises the StorageError of the case; the records then go with the next call. Only for the owner of the job's lease.
        """
        self.flush()
        if self._unshipped:
            first = self._seq - len(self._unshipped) + 1
            self._store.put(self._keys.journal_segment(first), b"".join(self._unshipped))
            self._unshipped = []

    def records(self, after_seq: int = 0) -> Iterator[Record]:
        yield from read_file(self.path, after_seq)

    def close(self) -> None:
        os.close(self._file)

    def _write(self, line: bytes) -> None:
        """All of the line or nothing of it. Raises StorageFull."""
        try:
            written = os.write(self._file, line)
            if written < len(line):
                raise OSError("short write")
        except OSError as error:
            os.ftruncate(self._file, self._size)
            raise StorageFull(f"cannot write {self.path}: {error.strerror or error}. Free some space and resume the job.") from error
        self._size += len(line)


def read_file(path: Path, after_seq: int = 0) -> Iterator[Record]:
    """The complete records of a journal file, from anywhere. No file: nothing."""
    for line in _complete_lines(path):
        record = _decode(line, str(path))
        if record["seq"] > after_seq:
            yield record


def read_segments(store: ObjectStore, keys: JobKeys, newest_only: bool = False) -> Iterator[Record]:
    """The records that have been shipped, in order. Where segments overlap, the one with the later first seq counts.

    Raises CorruptObject for a segment that cannot be read or that is missing between two others.
    """
    found = [info.key for info in store.list(keys.journal)]
    starts = [int(key.removeprefix(keys.journal).removesuffix(".jsonl")) for key in found]
    segments = list(zip(found, [*pairwise(starts), (starts[-1], None)], strict=True)) if found else []
    for key, (first, end) in segments[-1:] if newest_only else segments:
        yield from _segment(store.get(key), key, first, end)


def history(records: Iterable[Mapping[str, Any]]) -> list[Record]:
    """Training metrics with rewinds applied: one row `{"step", "time_s", name: value ...}` per step, in order of the steps."""
    return _rows(records, "metrics")


def evaluations(records: Iterable[Mapping[str, Any]]) -> list[Record]:
    """Evaluations with rewinds applied, as rows like those of `history`."""
    return _rows(records, "evaluated")


def _rows(records: Iterable[Mapping[str, Any]], kind: str) -> list[Record]:
    rows: dict[int, Record] = {}
    for record in records:
        if record["kind"] == "rewind":
            rows = {step: row for step, row in rows.items() if step <= record["step"]}
        elif record["kind"] == kind:
            row = rows.setdefault(record["step"], {"step": record["step"]})
            row.update({"time_s": record["time_s"], **record["values"]})
    return [rows[step] for step in sorted(rows)]


def _check(kind: str, fields: Mapping[str, Any]) -> None:
    if kind not in FIELDS:
        raise ValueError(f"'{kind}' is no kind of journal record; known are {', '.join(FIELDS)}.{nearest(kind, FIELDS)}")
    if missing := FIELDS[kind] - set(fields):
        raise ValueError(f"a journal record of kind '{kind}' needs {', '.join(sorted(missing))}; given are {', '.join(fields) or 'none'}")
    if kind in ("metrics", "evaluated", "ledger"):
        for name, value in fields["values"].items():
            if not isinstance(value, int | float):
                raise ValueError(f"{kind}: {name}={value!r} is not possible: allowed is a number")
    if kind == "end" and fields["status"] not in END_STATUSES:
        raise ValueError(f"end: status={fields['status']!r} is not possible: allowed is {', '.join(END_STATUSES)}")


def _encode(record: Mapping[str, Any]) -> bytes:
    return json.dumps(record, separators=(",", ":")).encode() + b"\n"


def _decode(line: bytes, where: str) -> Record:
    try:
        record = json.loads(line)
        if isinstance(record["seq"], int) and isinstance(record["kind"], str):
            return dict(record)
    except (ValueError, KeyError, TypeError) as error:
        raise CorruptObject(f"{where}: a line of the journal cannot be read ({error}): {line[:80]!r}") from error
    raise CorruptObject(f"{where}: a line of the journal is no record: {line[:80]!r}")


def _segment(data: bytes, key: str, first: int, end: int | None) -> Iterator[Record]:
    """Records `first` <= seq < `end` of one segment; all of them must be there."""
    records = [_decode(line, key) for line in data.splitlines(keepends=True)]
    kept = [record for record in records if end is None or record["seq"] < end]
    last = end - 1 if end is not None else first + len(kept) - 1
    if [record["seq"] for record in kept] != list(range(first, last + 1)):
        raise CorruptObject(f"{key}: records {first} to {last} should be here; it is damaged, or a segment after it is missing")
    yield from kept


def _complete_lines(path: Path) -> list[bytes]:
    if not path.exists():
        return []
    lines = path.read_bytes().splitlines(keepends=True)
    return lines if not lines or lines[-1].endswith(b"\n") else lines[:-1]


def _holds(lines: list[bytes], record: Record) -> bool:
    """Whether the file has that record at its place. If not, another machine has gone on with the journal since."""
    seq: int = record["seq"]
    return len(lines) >= seq and lines[seq - 1] == _encode(record)


def _replace(path: Path, content: bytes) -> None:
    """Make `path` hold `content`, durably and at once, unless it does already."""
    if path.exists() and path.read_bytes() == content:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(path.name + ".new")
    with new.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    new.replace(path)
