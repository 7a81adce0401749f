from __future__ import annotations

from collections.abc import Callable

import pytest

from orchestrator.cli.keeping import check_storage, secrets_for
from orchestrator.control.file_locks import exclusive
from orchestrator.control.lock import ControllerLock, cluster_lock
from orchestrator.control.records.store import JobStore
from orchestrator.paths import Home
from orchestrator.spec import DataSpec, JobSpec, ModelSpec, StorageSpec, TrainingSpec, WorkloadSpec

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
    assert secrets_for(StorageSpec()) == mlflow
    assert secrets_for(StorageSpec(url="s3://bucket")) == {**mlflow, **s3}


def _held(home: Home) -> None:
    with exclusive(cluster_lock(home), on_wait=lambda: None):
        pass


@pytest.mark.parametrize("first", [
    ControllerLock, _held, lambda home: JobStore(home.jobs_db), lambda home: check_storage(SPEC, home, {}),
])  # fmt: skip
def test_whatever_makes_the_home_makes_it_for_its_owner_alone(home: Home, first: Callable[[Home], object]) -> None:
    first(home)
    assert home.root.stat().st_mode & 0o777 == 0o700
