"""The tracking server: does it answer?"""

from __future__ import annotations

import http.client
import sqlite3
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlparse

from orchestrator.control.checkup.finding import Finding, Subject, ok, problem, warning

LIMIT_S = 5.0


def check_tracking(subject: Subject) -> Iterator[Finding]:
    spec = subject.tracking
    uri = spec.uri or f"sqlite:///{subject.home.mlflow / 'mlflow.db'}"
    kind = urlparse(uri).scheme
    if not spec.enabled:
        yield ok("off: tracking.enabled=false")
    elif kind in ("http", "https"):
        yield _server(uri)
    elif kind == "sqlite":
        yield _database(Path(uri.removeprefix("sqlite:///")))
    else:
        yield ok(f"{uri} is not looked at: only MLflow servers and SQLite files are")


def _server(uri: str) -> Finding:
    fix = "mlflow server --host ... --port ..., or give another tracking.uri; a job keeps its figures until the server is back"
    try:
        with urllib.request.urlopen(f"{uri.rstrip('/')}/health", timeout=LIMIT_S) as answer:
            said = answer.read(100).decode(errors="replace").strip()
    except urllib.error.HTTPError as refusal:
        if refusal.code in (401, 403):
            return problem(
                f"{uri} refuses us: {refusal.code} {refusal.reason}", "export MLFLOW_TRACKING_USERNAME=... MLFLOW_TRACKING_PASSWORD=..."
            )
        return problem(f"{uri} answers {refusal.code} {refusal.reason}: is it an MLflow server?", fix)
    except (OSError, ValueError, http.client.HTTPException) as error:
        return problem(f"{uri} does not answer: {getattr(error, 'reason', error)}", fix)
    return ok(f"{uri} answers") if said == "OK" else warning(f"{uri} answers '{said}', not 'OK': is it an MLflow server?", fix)


def _database(file: Path) -> Finding:
    if not file.exists():
        return ok(f"{file} is not there yet: the first job makes it")
    try:
        with sqlite3.connect(f"file:{file}?mode=ro", uri=True, timeout=LIMIT_S) as connection:
            found = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
    except sqlite3.Error as error:
        return problem(
            f"{file} cannot be read: {error}", f"mv {file} {file}.broken   (the next job makes a new one; the old runs are not shown)"
        )
    if found != "ok":
        return problem(f"{file} is damaged: {found}", f"sqlite3 {file} .recover | sqlite3 {file}.new && mv {file}.new {file}")
    return ok(f"{file}, {file.stat().st_size / 1e6:.1f} MB")
