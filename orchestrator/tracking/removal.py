"""Deletes a run from MLflow in a process of its own: MLflow's imports take seconds, in which a controller beside it would stand still.

    echo '{"uri": URI, "run_id": ID}' | python -m orchestrator.tracking.removal

It writes `{"error": "..."}`, empty if the run is gone. MLflow itself keeps a deleted run until `mlflow gc`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping

from orchestrator.spec.operations import TRACKING_SECRETS
from orchestrator.tracking.mlflow_run import TrackingRefused, TrackingUnavailable, delete_run
from orchestrator.tracking.writer import MLFLOW_ENVIRONMENT

LIMIT_S = 100.0


def delete_run_apart(uri: str, run_id: str, secrets: Mapping[str, str]) -> None:
    """No error if it is gone already. `secrets`: MLflow's are taken from them, no other variable. Raises TrackingUnavailable."""
    asked = json.dumps({"uri": uri, "run_id": run_id})
    environ = {**os.environ, **{name: secrets[name] for name in TRACKING_SECRETS if name in secrets}}
    command = [sys.executable, "-m", "orchestrator.tracking.removal"]
    try:
        done = subprocess.run(command, input=asked, env=environ, capture_output=True, text=True, timeout=LIMIT_S)
    except subprocess.TimeoutExpired as error:
        raise TrackingUnavailable(f"MLflow has not deleted the run {run_id} in {LIMIT_S:.0f} s") from error
    try:
        why = json.loads(done.stdout.splitlines()[-1])["error"]
    except (ValueError, IndexError):
        why = f"exit status {done.returncode}: {done.stderr.strip()[-500:]}"
    if why:
        raise TrackingUnavailable(f"the run {run_id} is not deleted: {why}")


def main() -> None:
    os.environ.update({name: os.environ.get(name, value) for name, value in MLFLOW_ENVIRONMENT.items()})
    asked, why = json.load(sys.stdin), ""
    try:
        delete_run(asked["uri"], asked["run_id"])
    except (TrackingUnavailable, TrackingRefused) as error:
        why = str(error)
    sys.stdout.write(json.dumps({"error": why}) + "\n")


if __name__ == "__main__":
    main()
