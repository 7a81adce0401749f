"""The verbs about jobs that exist, and about the cluster."""

from __future__ import annotations

import codecs
import dataclasses
import json
import math
import os
import sys
import time
from collections.abc import Iterator
from datetime import datetime
from typing import Any

from orchestrator.cli.parser import Parser, parser_for
from orchestrator.cli.screen import Screen, best_line, command, duration, goodput_line, state_line, table, workers
from orchestrator.control.client import Client
from orchestrator.errors import JobNotFound, UserError
from orchestrator.job import Job, job_to_dict
from orchestrator.paths import Home, JobKeys
from orchestrator.storage import ObjectStore, open_store
from orchestrator.supervision.ledger import as_of


def client_for(home: str, job: str) -> Client:
    found = Home.find(home)
    if not found.jobs_db.exists():
        raise JobNotFound(f"no job is named '{job}': there are no jobs in {found.root}; `orchestrator train` starts one")
    return Client(found)


def list_(arguments: list[str]) -> int:
    parser = parser_for("list", "All jobs, oldest first.")
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args(arguments)
    home = Home.find(asked.home)
    jobs = Client(home).jobs() if home.jobs_db.exists() else []
    if asked.json:
        print(as_json([job_to_dict(job) for job in jobs]))
    elif jobs:
        rows = [(job.id, job.state.value, _share(job), workers(job), _age(job), _words(job)) for job in jobs]
        print(table(("JOB", "STATE", "DONE", "WORKERS", "AGE", "NOW"), rows))
    else:
        print(f"no jobs in {home.root}; `orchestrator train` starts one")
    return 0


def status_(arguments: list[str]) -> int:
    parser = parser_for("status", "One job and its events.")
    parser.add_argument("job")
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args(arguments)
    client = client_for(asked.home, asked.job)
    job = client.job(asked.job)
    events = client.events(job.id)
    ledger = as_of(job, time.time())
    if asked.json:
        told = [{**dataclasses.asdict(event), "seq": number, "kind": event.kind.value} for number, event in events]
        print(as_json({**job_to_dict(job), "goodput": ledger.to_dict() if ledger else None, "events": told}))
        return 0
    print(f"{job.id}  {job.state.value}  {_words(job)}")
    for _, event in events:
        print(f"  {datetime.fromtimestamp(event.time_s):%Y-%m-%d %H:%M:%S}  {event.kind.value:<18} {_first_line(event.message)}")
    if job.progress.best_value is not None:
        print(best_line(job))
    if ledger is not None and ledger.held_s:
        print(goodput_line(ledger))
    if job.result and job.result.mlflow_run_id:
        print(f"MLflow run {job.result.mlflow_run_id}   ({command('dashboard', client.home)})")
    print(f"next: {command(f'resume {job.id}' if job.state.terminal else f'logs -f {job.id}', client.home)}")
    return 0


def logs_(arguments: list[str]) -> int:
    parser = parser_for("logs", "What the ranks printed, over all restarts.")
    parser.add_argument("job")
    parser.add_argument("-f", "--follow", action="store_true", help="until the job has ended")
    parser.add_argument("--rank", type=int, default=None)
    asked = parser.parse_args(arguments)
    client = client_for(asked.home, asked.job)
    job = client.job(asked.job)
    store = open_store(job.spec.storage)
    seen: set[str] = set()
    lines = _Lines(prefixed=asked.rank is None)
    while True:
        ended = client.job(job.id).state.terminal  # asked before the look: what was written until then is seen
        for epoch, rank, piece in _pieces(store, JobKeys(job.id), asked.rank, seen):
            lines.add(epoch, rank, piece)
        if ended or not asked.follow:
            lines.close()
            return 0
        time.sleep(0.5)


class _Lines:
    """Whole lines of several ranks. A rank's last line ends with its epoch."""

    def __init__(self, prefixed: bool) -> None:
        self._prefixed = prefixed
        self._rest: dict[int, str] = {}
        self._decoders: dict[int, tuple[str, codecs.IncrementalDecoder]] = {}

    def add(self, epoch: str, rank: int, piece: bytes) -> None:
        if self._decoders.get(rank, ("",))[0] != epoch:
            self._end(rank)
            self._decoders[rank] = (epoch, codecs.getincrementaldecoder("utf-8")(errors="replace"))
        text = self._decoders[rank][1].decode(piece)
        *lines, self._rest[rank] = (self._rest.get(rank, "") + text).split("\n")
        for line in lines:
            self._print(rank, line)

    def close(self) -> None:
        for rank in sorted(self._rest):
            self._end(rank)

    def _end(self, rank: int) -> None:
        if rest := self._rest.pop(rank, ""):
            self._print(rank, rest)

    def _print(self, rank: int, line: str) -> None:
        print(f"[rank {rank}] {line}" if self._prefixed else line, flush=True)


def _pieces(store: ObjectStore, keys: JobKeys, only: int | None, seen: set[str]) -> Iterator[tuple[str, int, bytes]]:
    """(epoch, rank, bytes) of the pieces that are new, in order of epoch, then offset."""
    found = []
    for info in store.list(keys.logs):
        epoch, rank, offset = info.key.removeprefix(keys.logs).split("/")
        if info.key not in seen and only in (None, int(rank)):
            found.append((epoch, offset, int(rank), info.key))
    for epoch, _, speaker, key in sorted(found):
        seen.add(key)
        yield epoch, speaker, store.get(key)


def cancel_(arguments: list[str]) -> int:
    parser = parser_for("cancel", "Save a checkpoint and stop a job.")
    parser.add_argument("job")
    parser.add_argument("--now", action="store_true", help="at once, without a checkpoint")
    asked = parser.parse_args(arguments)
    client = client_for(asked.home, asked.job)
    job = client.request_stop(client.job(asked.job).id, "now" if asked.now else "drain")
    if job.state.terminal:
        print(f"{job.id} has ended already: {job.state.value}")
    else:
        print(f"{job.id} is asked to stop{'' if asked.now else ' after a checkpoint'}")
        print(f"go on later: {command(f'resume {job.id}', client.home)}")
    return 0


def resume_(arguments: list[str]) -> int:
    from orchestrator.cli.follow import follow
    from orchestrator.cli.jobspec import check_storage, secrets_for
    from orchestrator.config import apply_overrides
    from orchestrator.control.local import ensure_cluster

    parser = parser_for("resume", "Go on from the newest good checkpoint.")
    parser.add_argument("job")
    parser.add_argument("overrides", nargs="*", help="for example training.max_steps=2000 resources.num_workers=4")
    parser.add_argument("--detach", action="store_true", help="do not follow it")
    asked = parser.parse_intermixed_args(arguments)
    client = client_for(asked.home, asked.job)
    job = client.job(asked.job)
    spec = apply_overrides(job.spec, asked.overrides) if asked.overrides else None
    wanted = spec or job.spec
    screen = Screen()
    screen.say(f"resuming {job.id} from step {job.progress.committed_step or 0}")
    secrets = secrets_for(wanted.storage)
    check_storage(wanted, client.home, secrets)
    cluster = ensure_cluster(client.home, wanted.cluster, screen.say)
    client.resume(job.id, spec, secrets)
    if asked.detach:
        screen.say(f"{job.id} is queued; follow it: {command(f'logs -f {job.id}', client.home)}")
        return 0
    return follow(client, job.id, cluster, screen)


def dashboard_(arguments: list[str]) -> int:
    parser = parser_for("dashboard", "MLflow's page on this machine's runs.")
    parser.add_argument("--port", type=int, default=5000)
    asked = parser.parse_args(arguments)
    folder = Home.find(asked.home).mlflow
    if not (folder / "mlflow.db").exists():
        raise UserError(f"there are no runs in {folder}; `orchestrator train` makes one")
    print(f"MLflow on http://127.0.0.1:{asked.port} in up to half a minute; Ctrl-C ends it", flush=True)
    server = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(asked.port), "--workers", "1"]
    server += ["--backend-store-uri", f"sqlite:///{folder / 'mlflow.db'}", "--default-artifact-root", str(folder / "artifacts")]
    os.execve(sys.executable, server, {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"})


def down_(arguments: list[str]) -> int:
    from orchestrator.control.local import stop_cluster

    parser = parser_for("down", "Stop the local cluster. Jobs that run go on from their last commit when they are resumed.")
    asked = parser.parse_args(arguments)
    stopped = stop_cluster(Home.find(asked.home), Screen().say)
    print("the local cluster is stopped" if stopped else "no local cluster runs")
    return 0


def version_(arguments: list[str]) -> int:
    from importlib.metadata import version

    Parser(prog="orchestrator version").parse_args(arguments)
    print(f"orchestrator {version('orchestrator')}")
    return 0


def _share(job: Job) -> str:
    return f"{100 * job.progress.step // max(1, job.spec.training.max_steps)}%"


def _age(job: Job) -> str:
    return duration((job.ended_s or time.time()) - job.submitted_s)


def _words(job: Job) -> str:
    return _first_line(job.reason) if job.state.terminal else state_line(job)


def _first_line(text: str) -> str:
    return text.partition("\n")[0]


def as_json(value: Any) -> str:
    """Strict JSON: a figure that is no number becomes null."""

    def strict(item: Any) -> Any:
        if isinstance(item, dict):
            return {key: strict(inner) for key, inner in item.items()}
        if isinstance(item, list | tuple):
            return [strict(inner) for inner in item]
        return None if isinstance(item, float) and not math.isfinite(item) else item

    return json.dumps(strict(value), allow_nan=False)
