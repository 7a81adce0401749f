"""Where tracking goes to and how far it has come: the MLflow URI of a job and the writer's state file. Knows nothing of MLflow."""

from __future__ import annotations

import dataclasses
import json
import os
from dataclasses import dataclass, field
from pathlib import Path

from orchestrator.paths import Home
from orchestrator.spec import TrackingSpec


def tracking_uri(tracking: TrackingSpec, home: Home) -> str:
    """The MLflow tracking URI of a job; without one of the user's, the SQLite file in the cluster's home."""
    return tracking.uri or f"sqlite:///{home.mlflow / 'mlflow.db'}"


def artifact_location(uri: str, home: Home) -> str | None:
    """Where a new experiment keeps its artifacts: in the home for a database; None lets a tracking server choose."""
    return None if uri.startswith(("http://", "https://", "databricks")) else str(home.mlflow / "artifacts")


@dataclass(kw_only=True)
class Delivered:
    """What has reached MLflow. Kept in `<journal>.state.json`, replaced atomically after every batch."""

    mlflow_run_id: str = ""
    last_seq: int = 0
    last_record: str = ""
    """Checksum of the record `last_seq`: if the journal has another one there, it lost its tail and is read again."""
    watermarks: dict[str, int] = field(default_factory=dict)
    """By metric: the highest step that was delivered. A replay of it or of earlier ones is not delivered again."""
    rewinds: int = 0
    ended: bool = False
    """The newest record delivered says that the job ended."""


def state_path(journal: Path) -> Path:
    return journal.with_name(journal.name + ".state.json")


def load_delivered(journal: Path) -> Delivered:
    """The state beside `journal`; a fresh one if there is none. The supervisor finds the MLflow run id here."""
    path = state_path(journal)
    return Delivered(**json.loads(path.read_text())) if path.exists() else Delivered()


def save_delivered(journal: Path, delivered: Delivered) -> None:
    path = state_path(journal)
    new = path.with_name(path.name + ".new")
    with new.open("w") as file:
        json.dump(dataclasses.asdict(delivered), file)
        file.flush()
        os.fsync(file.fileno())
    new.replace(path)
