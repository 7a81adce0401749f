"""`orchestrator up`, `down` and `dashboard`: what runs on this machine beside the jobs."""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Sequence

from orchestrator.cli.parser import parser_for
from orchestrator.cli.screen import Screen, as_json, command, duration
from orchestrator.control.client import Client
from orchestrator.control.records.database import exists
from orchestrator.errors import UserError, nearest
from orchestrator.paths import Home
from orchestrator.ports import DASHBOARD_PORT
from orchestrator.spec import ClusterSpec

NEVER_S = 100 * 365 * 86_400.0
"""Without a job, before a cluster that was started by `up` stops."""


def up_(arguments: list[str]) -> int:
    """The control plane, and a local Ray cluster unless `cluster.address` names one, without a job."""
    from orchestrator.control.keeper import ClusterFile
    from orchestrator.control.local import ensure_cluster

    parser = parser_for("up", "Start the local cluster and its control plane, or the control plane of a cluster that others started.")
    parser.add_argument("overrides", nargs="*", help="for example cluster.num_cpus=8, or cluster.address=HOST:PORT")
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args(arguments)
    wanted = _cluster_spec(asked.overrides)
    stays = not any(override.startswith("cluster.idle_timeout_s=") for override in asked.overrides)
    if stays:
        wanted = dataclasses.replace(wanted, idle_timeout_s=NEVER_S)
    home = Home.find(asked.home or wanted.home)
    cluster = ensure_cluster(home, wanted, Screen(beside_json=asked.json).say)
    file = ClusterFile.read(home)
    idle_s = file.idle_timeout_s if file is not None and not wanted.address else NEVER_S
    if asked.json:
        told = {"home": str(home.root), "address": cluster.address, "started": cluster.started}
        print(as_json({**told, "idle_timeout_s": idle_s if idle_s < NEVER_S else None}))
        return 0
    print(f"the cluster at {cluster.address} {'is up' if cluster.started else 'was up'}; state in {home.root}")
    print("it stays until it is told to stop" if idle_s >= NEVER_S else f"it stops after {duration(idle_s)} without a job")
    print(f"next: {command('submit', home)}   stop it: {command('down', home)}")
    return 0


def _cluster_spec(overrides: Sequence[str]) -> ClusterSpec:
    from orchestrator.config import load_job_spec

    names = [f"cluster.{item.name}" for item in dataclasses.fields(ClusterSpec)]
    for override in overrides:
        name = override.partition("=")[0]
        if not name.startswith("cluster"):
            raise UserError(f"{override} is not possible: allowed is {', '.join(names)}.{nearest(name, names)}")
    return load_job_spec(overrides).cluster


def down_(arguments: list[str]) -> int:
    from orchestrator.control.local import stop_cluster

    parser = parser_for("down", "Stop the local cluster. Jobs that run go on from their last commit when they are resumed.")
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args(arguments)
    home = Home.find(asked.home)
    stopped = stop_cluster(home, Screen(beside_json=asked.json).say)
    waiting = [summary.id for summary in Client(home).summaries()[0] if not summary.state.terminal] if exists(home) else []
    if asked.json:
        print(as_json({"stopped": stopped, "waiting": waiting}))
        return 0
    print("the local cluster is stopped" if stopped else "no local cluster runs")
    if waiting:
        print(f"{len(waiting)} job{'s wait' if len(waiting) > 1 else ' waits'} for the next one: {command('up', home)}")
    return 0


def dashboard_(arguments: list[str]) -> int:
    parser = parser_for("dashboard", "MLflow's page on this machine's runs.")
    parser.add_argument("--port", type=int, default=DASHBOARD_PORT)
    asked = parser.parse_args(arguments)
    folder = Home.find(asked.home).mlflow
    if not (folder / "mlflow.db").exists():
        raise UserError(f"there are no runs in {folder}; `orchestrator train` makes one")
    print(f"MLflow on http://127.0.0.1:{asked.port} in up to half a minute; Ctrl-C ends it", flush=True)
    server = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(asked.port), "--workers", "1"]
    server += ["--backend-store-uri", f"sqlite:///{folder / 'mlflow.db'}", "--default-artifact-root", str(folder / "artifacts")]
    os.execve(sys.executable, server, {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"})
