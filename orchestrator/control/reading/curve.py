"""The loss curve of a job, from what its journal has brought into the object store with each commit, also while it runs."""

from __future__ import annotations

import json
import math
import threading
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, NamedTuple

from orchestrator.errors import CorruptObject
from orchestrator.paths import JobKeys
from orchestrator.storage import ObjectStore

MAX_JOBS = 32
"""Whose curves are remembered."""
_KINDS = ("metrics", "evaluated", "rewind")


class Record(NamedTuple):
    """Of the journal, as far as a curve needs it."""

    seq: int
    kind: str
    step: int
    loss: float | None


@dataclass
class _Known:
    segments: list[tuple[str, int]] = field(default_factory=list)
    """(key, size) of those that were read."""
    records: list[Record] = field(default_factory=list)


class Curves:
    """Of the jobs that were looked at last; of each, only what is new is read again. For many threads."""

    def __init__(self) -> None:
        self._known: OrderedDict[tuple[str, str], _Known] = OrderedDict()
        self._lock = threading.Lock()

    def read(self, store: ObjectStore, job_id: str, num_points: int) -> dict[str, Any]:
        """`{"training": [[step, loss] ...], "validation": [...]}`, with rewinds applied, `num_points` of each at most.

        Raises StorageError, CorruptObject for a segment that cannot be read.
        """
        keys = JobKeys(job_id)
        found = [(info.key, info.num_bytes) for info in store.list(keys.journal)]
        name = (store.url, job_id)
        with self._lock:
            known = self._known.get(name, _Known())
        if known.segments != found:
            known = _read_on(store, keys, known, found)
            self._remember(name, known)
        curves = {"training": points(known.records, "metrics"), "validation": points(known.records, "evaluated")}
        return {name: thinned(curve, num_points) for name, curve in curves.items()}

    def _remember(self, name: tuple[str, str], known: _Known) -> None:
        with self._lock:
            self._known[name] = known
            self._known.move_to_end(name)
            while len(self._known) > MAX_JOBS:
                self._known.popitem(last=False)


def _read_on(store: ObjectStore, keys: JobKeys, known: _Known, found: list[tuple[str, int]]) -> _Known:
    """Where segments overlap, the one with the later first record counts."""
    grown = found[: len(known.segments)] == known.segments
    records = list(known.records) if grown else []
    for key, _ in found[len(known.segments) if grown else 0 :]:
        first = int(key.removeprefix(keys.journal).removesuffix(".jsonl"))
        while records and records[-1].seq >= first:
            records.pop()
        records += _records(store.get(key), key)
    return _Known(segments=found, records=records)


def _records(data: bytes, key: str) -> list[Record]:
    try:
        lines = [json.loads(line) for line in data.splitlines()]
        return [_record(line) for line in lines if line["kind"] in _KINDS]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CorruptObject(f"{key}: a line of the journal cannot be read ({error})") from error


def _record(line: dict[str, Any]) -> Record:
    loss = line.get("values", {}).get("loss")
    return Record(seq=int(line["seq"]), kind=line["kind"], step=int(line["step"]), loss=None if loss is None else float(loss))


def points(records: Iterable[Record], kind: str) -> list[tuple[int, float]]:
    """(step, loss) in order of the steps; those that are no number are left out."""
    found: dict[int, float] = {}
    for record in records:
        if record.kind == "rewind":
            found = {step: loss for step, loss in found.items() if step <= record.step}
        elif record.kind == kind and record.loss is not None and math.isfinite(record.loss):
            found[record.step] = record.loss
    return sorted(found.items())


def thinned(curve: Sequence[tuple[int, float]], num_points: int) -> list[tuple[int, float]]:
    """The lowest and the highest of each of equal parts, so that no spike is lost; the first and the last point stay."""
    if len(curve) <= num_points:
        return list(curve)
    num_parts = max(1, (num_points - 2) // 2)
    inner = curve[1:-1]
    bounds = [len(inner) * part // num_parts for part in range(num_parts + 1)]
    kept = [curve[0]]
    for start, end in pairwise(bounds):
        part = sorted(inner[start:end], key=lambda point: point[1])
        kept += sorted({part[0], part[-1]}) if part else []
    return [*kept, curve[-1]]
