"""The tracking writer: a child process of the supervisor that drains the journal into MLflow. Only it ever waits for a server.

    python -m orchestrator.tracking.writer --journal PATH --config PATH

The config is JSON: `{"job_id": str, "spec": JobSpec as a dict, "home": str}`. Delivery is at least once and idempotent: a batch
goes out, then `<journal>.state.json` says so. Timestamps come from the records, so a batch that is sent twice is stored once; a
metric of a step that was delivered before (a replay after a rewind) is not sent again. It tries for ever; SIGTERM, or the death of
the supervisor, means one last try. Exit status: 0 when the job has ended and all is delivered, 3 when something is left in the
journal.
"""

from __future__ import annotations

import argparse
import ctypes
import fcntl
import json
import logging
import os
import signal
import sys
import tempfile
import zlib
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import IO, Any, Protocol

from orchestrator.errors import CorruptObject, ObjectNotFound, StorageDenied, StorageError
from orchestrator.paths import Home, JobKeys
from orchestrator.spec import JobSpec, from_dict
from orchestrator.storage import ObjectStore, open_store
from orchestrator.tracking.delivery import Delivered, load_delivered, save_delivered
from orchestrator.tracking.journal import Record, read_file
from orchestrator.tracking.mlflow_run import (
    MAX_METRICS_PER_BATCH,
    MetricPoint,
    MlflowRun,
    TrackingRefused,
    TrackingUnavailable,
    clean_name,
)
from orchestrator.tracking.redact import Redactor

ALL_DELIVERED = 0
SOMETHING_LEFT = 3
POLL_S = 0.5
LONGEST_BACKOFF_S = 30.0
RECORDS_AT_ONCE = 10_000
PR_SET_PDEATHSIG = 1

# A call to a dead server gives up after 3 s instead of 247; nothing is sent to anybody but the tracking server.
MLFLOW_ENVIRONMENT = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "5",
    "MLFLOW_DISABLE_TELEMETRY": "true",
}

log = logging.getLogger("orchestrator.tracking")


class Writer:
    """Reads records, delivers them in order, remembers how far it came."""

    def __init__(self, journal: Path, run: MlflowRun, keys: JobKeys, store: Callable[[], ObjectStore]) -> None:
        """`store` opens the job's object store; it is called for the first artifact."""
        self._journal = journal
        self._run = run
        self._keys = keys
        self._open_store = store
        self._store: ObjectStore | None = None
        self._queue: deque[Record] = deque()
        self._file: IO[bytes] | None = None
        self._state = _continued(journal)

    def deliver(self) -> bool:
        """Deliver what the journal holds by now. True if the job has ended and nothing is left. Raises as `MlflowRun` does."""
        if not self._run.run_id:
            self._bind()
        while self._queue or self._read():
            batch = self._next_batch()
            after = deepcopy(self._state)
            self._send(batch, after)
            after.last_seq = batch[-1]["seq"]
            after.last_record = _checksum(batch[-1])
            self._keep(after)
            for _ in batch:
                self._queue.popleft()
        return self._state.ended

    def _bind(self) -> None:
        self._run.bind()
        if self._run.run_id != self._state.mlflow_run_id:
            # Not the run that the state speaks of: read the journal from its beginning; what this run has stays as it is.
            self._keep(Delivered(mlflow_run_id=self._run.run_id, watermarks=self._run.watermarks()))
            self._rewind_file()

    def _keep(self, state: Delivered) -> None:
        save_delivered(self._journal, state)
        self._state = state

    def _rewind_file(self) -> None:
        self._queue.clear()
        if self._file:
            self._file.close()
        self._file = None

    def _read(self) -> bool:
        """Queue complete lines that are new. A line without its end is still being written and is left for the next time."""
        if self._file is None:
            self._file = self._journal.open("rb")
        for _ in range(RECORDS_AT_ONCE):
            start = self._file.tell()
            line = self._file.readline()
            if not line.endswith(b"\n"):
                self._file.seek(start)
                break
            record = json.loads(line)
            if record["seq"] > self._state.last_seq:
                self._queue.append(record)
        return bool(self._queue)

    def _next_batch(self) -> list[Record]:
        """One record, or as many metric records in a row as make a full batch."""
        batch = [self._queue[0]]
        size = len(batch[0].get("values", ()))
        for record in islice(self._queue, 1, None):
            size += len(record.get("values", ()))
            if not (_is_metrics(batch[0]) and _is_metrics(record)) or size > MAX_METRICS_PER_BATCH:
                break
            batch.append(record)
        return batch

    def _send(self, batch: Sequence[Record], after: Delivered) -> None:
        """Everything of `after` but the place in the journal is brought up to date."""
        marks = dict(after.watermarks)
        try:
            if _is_metrics(batch[0]):
                self._run.log_metrics(list(new_points(batch, after.watermarks)))
            else:
                self._send_other(batch[0], after)
        except TrackingRefused as error:
            if len(batch) > 1:  # one of them spoils the batch
                after.watermarks = marks
                for record in batch:
                    self._send([record], after)
            else:  # it would be refused for ever and hold up all that follows; it stays in the journal
                log.warning("MLflow refused record %d: %s", batch[0]["seq"], error)

    def _send_other(self, record: Record, after: Delivered) -> None:
        match record["kind"]:
            case "params":
                self._run.log_params(record["values"])
            case "tags":
                self._run.set_tags(record["values"])
            case "event":
                self._run.set_tags({f"event.{record['event']}": f"{_when(record)} {record.get('message', '')}".rstrip()})
            case "rewind":
                after.rewinds += 1
                self._run.set_tags({"rewinds": after.rewinds, "last_rewind": f"{_when(record)} to step {record['step']}"})
            case "artifact":
                self._copy_artifact(record["name"])
            case "model":
                self._run.register(record["name"], record["source"], {"job_id": record["job_id"], "step": record["step"]})
            case "resumed":
                after.ended = False
                self._run.reopen()
            case "end":
                after.ended = True
                self._end(record)

    def _end(self, record: Record) -> None:
        facts = {name: value for name, value in record.items() if name not in ("seq", "time_s", "kind", "status")}
        self._run.set_tags({f"orchestrator.{name}": value for name, value in facts.items()})
        self._run.end(record["status"], record["time_s"])

    def _copy_artifact(self, name: str) -> None:
        try:
            self._store = self._store or self._open_store()
            content = self._store.get(self._keys.artifact(name))
        except (ObjectNotFound, StorageDenied, CorruptObject) as error:
            log.warning("artifact %s is not copied: %s", name, error)
            return
        except StorageError as error:
            raise TrackingUnavailable(f"artifact {name} cannot be read: {error}") from error
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / name
            path.write_bytes(content)
            self._run.log_artifact(path)


def new_points(records: Sequence[Record], watermarks: dict[str, int]) -> Iterator[MetricPoint]:
    """Metrics beyond their watermark, which moves with them. Evaluations get the prefix `val_`."""
    for record in records:
        prefix = "val_" if record["kind"] == "evaluated" else ""
        for key, value in record["values"].items():
            name = clean_name(key if key.startswith(prefix) else prefix + key)
            if record["step"] > watermarks.get(name, -1):
                watermarks[name] = record["step"]
                yield MetricPoint(name, float(value), record["time_s"], record["step"])


def drain(writer: Writer, stop: Stop) -> int:
    """Deliver until the job has ended, or until one try after `stop` is set. Returns the exit status."""
    failures = 0
    while True:
        last_try = stop.is_set()
        try:
            if writer.deliver():
                return ALL_DELIVERED
            failures = _recovered(failures)
        except (TrackingUnavailable, TrackingRefused) as error:
            failures += 1
            if failures == 1:
                log.warning("delivery waits, the journal keeps everything: %s", error)
        if last_try:
            return SOMETHING_LEFT
        stop.wait(POLL_S if not failures else min(2.0 ** (failures - 1), LONGEST_BACKOFF_S))


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m orchestrator.tracking.writer", description="Drain a job's journal into MLflow.")
    parser.add_argument("--journal", type=Path, required=True)
    parser.add_argument("--config", type=Path, required=True)
    options = parser.parse_args(arguments)
    logging.basicConfig(stream=sys.stderr, format="%(asctime)s %(levelname)s %(message)s", level=logging.WARNING)
    stop = StopSignal()
    os.environ.update({name: os.environ.get(name, value) for name, value in MLFLOW_ENVIRONMENT.items()})
    with _alone(options.journal, stop) as alone:
        return drain(_writer(options.journal, json.loads(options.config.read_text())), stop) if alone else SOMETHING_LEFT


def _writer(journal: Path, config: dict[str, Any]) -> Writer:
    spec: JobSpec = from_dict(JobSpec, config["spec"])
    run = MlflowRun(spec, config["job_id"], Home(Path(config["home"])), Redactor(os.environ))
    return Writer(journal, run, JobKeys(config["job_id"]), lambda: open_store(spec.storage))


class Stop(Protocol):
    """The part of `threading.Event` that the delivery needs."""

    def is_set(self) -> bool: ...

    def wait(self, timeout: float) -> bool: ...


class StopSignal:
    """Set by SIGTERM and SIGINT, and when the parent dies. The signals stay blocked and are asked for: no call is cut short."""

    _SIGNALS = frozenset({signal.SIGTERM, signal.SIGINT})

    def __init__(self) -> None:
        """To be made before any other thread starts: threads inherit what is blocked."""
        signal.pthread_sigmask(signal.SIG_BLOCK, self._SIGNALS)
        parent = os.getppid()
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        self._set = os.getppid() != parent

    def is_set(self) -> bool:
        return self.wait(0)

    def wait(self, timeout: float) -> bool:
        self._set = self._set or signal.sigtimedwait(self._SIGNALS, timeout) is not None
        return self._set


@contextmanager
def _alone(journal: Path, stop: Stop) -> Iterator[bool]:
    """Wait for the writer of a supervisor that died to make its last try. False if told to stop first."""
    with journal.with_name(journal.name + ".lock").open("w") as lock:
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if stop.wait(0.2):
                    yield False
                    return
        yield True


def _continued(journal: Path) -> Delivered:
    """The kept state, if the journal still has the record it stands at; else the same run and watermarks, from the first record on."""
    state = load_delivered(journal)
    if state.last_seq:
        record = next(read_file(journal, state.last_seq - 1), None)
        if record is None or _checksum(record) != state.last_record:
            return Delivered(mlflow_run_id=state.mlflow_run_id, watermarks=state.watermarks)
    return state


def _recovered(failures: int) -> int:
    if failures:
        log.warning("delivery goes on after %d failed tries", failures)
    return 0


def _is_metrics(record: Record) -> bool:
    return record["kind"] in ("metrics", "evaluated", "ledger")


def _checksum(record: Record) -> str:
    return f"{zlib.crc32(json.dumps(record, sort_keys=True).encode()):08x}"


def _when(record: Record) -> str:
    return datetime.fromtimestamp(record["time_s"], UTC).isoformat(timespec="seconds")


if __name__ == "__main__":
    sys.exit(main())
