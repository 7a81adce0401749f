"""One job as a page shows it: its row, where its time went, and where else there is something about it."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote, urlsplit, urlunsplit

from orchestrator.job import Job, job_to_dict
from orchestrator.supervision.accounting import Bucket
from orchestrator.supervision.ledger import Ledger, as_of


def job_page(job: Job, now_s: float, dashboard: str = "") -> dict[str, Any]:
    """JSON-ready. `dashboard`: host:port of Ray's, if it has one."""
    ledger = as_of(job, now_s)
    return {"job": job_to_dict(job), "ledger": None if ledger is None else _ledger(ledger), "links": _links(job, dashboard)}


def _ledger(ledger: Ledger) -> dict[str, Any]:
    """Seconds by bucket, in the order of a job's life; the shares of those that the job held its place in."""
    seconds = {bucket.value: ledger.seconds.get(bucket, 0.0) for bucket in Bucket}
    return {
        "seconds": seconds, "worker_s": ledger.worker_s, "held_s": ledger.held_s, "wall_s": ledger.wall_s,
        "goodput_share": ledger.goodput_share if ledger.held_s else None,
    }  # fmt: skip


def _links(job: Job, dashboard: str) -> dict[str, str]:
    run_id = (job.result.mlflow_run_id if job.result else "") or job.progress.mlflow_run_id
    server = web_address(job.spec.tracking.uri) if job.spec.tracking.enabled else ""
    run = f"{server.rstrip('/')}/#/runs/{quote(run_id, safe='')}" if server and run_id else ""
    return {"mlflow": run or server, "mlflow_run_id": run_id, "ray": f"http://{dashboard}" if dashboard else ""}


def web_address(uri: str) -> str:
    """Where a browser finds the tracking server; empty: it is no server."""
    parts = urlsplit(uri)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        return ""
    return urlunsplit((parts.scheme, parts.netloc, parts.path, "", ""))
