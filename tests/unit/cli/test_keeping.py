from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest

from orchestrator.cli.keeping import check_storage, secrets_for
from orchestrator.control.file_locks import exclusive
from orchestrator.control.lock import ControllerLock, cluster_lock
from orchestrator.control.records.store import JobStore
from orchestrator.errors import ConfigError, StorageDenied
from orchestrator.paths import Home
from orchestrator.spec import DataSpec, EnvironmentSpec, JobSpec, ModelSpec, StorageSpec, TrainingSpec, WorkloadSpec
from orchestrator.spec.operations import TRACKING_SECRETS

SPEC = JobSpec(
    workload=WorkloadSpec(name="tiny", entrypoint="tiny:Tiny"),
    model=ModelSpec(name="m"),
    data=DataSpec(name="d"),
    training=TrainingSpec(max_steps=10, global_batch_size=8, micro_batch_size=2),
)


def test_the_submitters_password_for_mlflow_travels_with_every_job_and_s3_keys_with_those_that_need_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("AWS_SESSION_TOKEN", "AWS_PROFILE", "MLFLOW_TRACKING_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    mlflow = {"MLFLOW_TRACKING_USERNAME": "ann", "MLFLOW_TRACKING_PASSWORD": "p"}
    s3 = {"AWS_ACCESS_KEY_ID": "k", "AWS_SECRET_ACCESS_KEY": "s"}
    for name, value in {**mlflow, **s3}.items():
        monkeypatch.setenv(name, value)
    assert secrets_for(SPEC) == mlflow
    assert secrets_for(dataclasses.replace(SPEC, storage=StorageSpec(url="s3://bucket"))) == {**mlflow, **s3}


def test_what_a_job_names_comes_from_the_submitters_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = dataclasses.replace(SPEC, environment=EnvironmentSpec(secrets=("HF_TOKEN",)))
    monkeypatch.setenv("HF_TOKEN", "hf_x")
    assert secrets_for(spec)["HF_TOKEN"] == "hf_x"
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(ConfigError, match=r"environment.secrets=HF_TOKEN is not possible.*export HF_TOKEN=\.\.\."):
        secrets_for(spec)


def test_a_profile_is_of_this_machine_and_elsewhere_the_keys_go_that_it_stands_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    spec = dataclasses.replace(SPEC, storage=StorageSpec(url="s3://bucket"))
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", *TRACKING_SECRETS):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "credentials").write_text("[work]\naws_access_key_id = k\naws_secret_access_key = s\n")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_PROFILE", "work")
    assert secrets_for(spec) == {"AWS_PROFILE": "work"}
    assert secrets_for(spec, elsewhere=True) == {"AWS_ACCESS_KEY_ID": "k", "AWS_SECRET_ACCESS_KEY": "s"}
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "mine")
    assert secrets_for(spec, elsewhere=True) == {"AWS_ACCESS_KEY_ID": "mine"}, "never half of one pair and half of another"
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.setenv("AWS_PROFILE", "wrok")
    with pytest.raises(StorageDenied, match="AWS_PROFILE=wrok"):
        secrets_for(spec, elsewhere=True)


def _held(home: Home) -> None:
    with exclusive(cluster_lock(home), on_wait=lambda: None):
        pass


@pytest.mark.parametrize("first", [
    ControllerLock, _held, lambda home: JobStore(home.jobs_db), lambda home: check_storage(SPEC, home, {}),
])  # fmt: skip
def test_whatever_makes_the_home_makes_it_for_its_owner_alone(home: Home, first: Callable[[Home], object]) -> None:
    first(home)
    assert home.root.stat().st_mode & 0o777 == 0o700
