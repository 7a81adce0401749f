from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.paths import Home
from orchestrator.spec import TrackingSpec
from orchestrator.tracking.delivery import Delivered, artifact_location, load_delivered, save_delivered, tracking_uri
from orchestrator.tracking.mlflow_run import clean_name, flatten, git_commit
from orchestrator.tracking.writer import new_points

HOME = Home(Path("/somewhere"))


def test_without_a_uri_runs_go_into_the_home() -> None:
    uri = tracking_uri(TrackingSpec(), HOME)
    assert uri == "sqlite:////somewhere/mlflow/mlflow.db"
    assert artifact_location(uri, HOME) == "/somewhere/mlflow/artifacts"


def test_a_server_chooses_its_own_artifact_store() -> None:
    uri = tracking_uri(TrackingSpec(uri="https://mlflow.example:5000"), HOME)
    assert uri == "https://mlflow.example:5000"
    assert artifact_location(uri, HOME) is None


def test_the_state_survives_and_starts_empty(tmp_path: Path) -> None:
    journal = tmp_path / "journal.jsonl"
    assert load_delivered(journal) == Delivered()
    state = Delivered(mlflow_run_id="r", last_seq=4, last_record="00", watermarks={"loss": 3}, rewinds=1, ended=True)
    save_delivered(journal, state)
    assert load_delivered(journal) == state
    assert [path.name for path in tmp_path.iterdir()] == ["journal.jsonl.state.json"]


def test_replayed_steps_are_delivered_once() -> None:
    marks = {"loss": 2}
    replay = enumerate([2, 3, 4, 3, 4, 5])
    records = [{"seq": n, "time_s": 10.0 + n, "kind": "metrics", "step": step, "values": {"loss": 1.0}} for n, step in replay]
    records.append({"seq": 9, "time_s": 20.0, "kind": "evaluated", "step": 4, "values": {"loss": 3.0, "val_f1": 0.5}})
    points = list(new_points(records, marks))
    assert [(p.name, p.step, p.time_s) for p in points] == [
        ("loss", 3, 11.0), ("loss", 4, 12.0), ("loss", 5, 15.0), ("val_loss", 4, 20.0), ("val_f1", 4, 20.0),
    ]
    assert marks == {"loss": 5, "val_loss": 4, "val_f1": 4}


def test_flatten_keeps_lists_whole() -> None:
    assert flatten({"a": {"b": 1, "c": {"d": [1, 2]}}, "e": ""}) == {"a.b": 1, "a.c.d": [1, 2], "e": ""}


@pytest.mark.parametrize(
    ("name", "clean"), [("loss", "loss"), ("f1@0.5=x", "f1_0.5_x"), ("/a//..", "_/a/_/_"), ("größe", "gr__e"), ("x" * 300, "x" * 250)]
)
def test_names_become_what_mlflow_allows(name: str, clean: str) -> None:
    assert clean_name(name) == clean


@pytest.mark.parametrize("folder", ["", "/does/not/exist"])
def test_no_repository_no_commit(folder: str, tmp_path: Path) -> None:
    assert git_commit(folder) == ""
    assert git_commit(str(tmp_path)) == ""
