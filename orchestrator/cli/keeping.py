"""Where a job is to keep what it makes: tried before anything is queued, with the keys of who submits."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from typing import TYPE_CHECKING

from orchestrator.cli.screen import size
from orchestrator.paths import Home, make_private
from orchestrator.spec import JobSpec, StorageSpec
from orchestrator.spec.operations import TRACKING_SECRETS

if TYPE_CHECKING:
    from orchestrator.code.package import Package
    from orchestrator.storage import ObjectStore

STORAGE_SECRETS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE")


def secrets_for(storage: StorageSpec) -> dict[str, str]:
    """The submitter's S3 keys and password for MLflow, for the job's processes; they travel beside the spec, never in it."""
    wanted = (*TRACKING_SECRETS, *(STORAGE_SECRETS if storage.url.startswith("s3://") else ()))
    return {name: os.environ[name] for name in wanted if name in os.environ}


def with_package(spec: JobSpec, home: Home, secrets: dict[str, str], say: Callable[[str], None]) -> JobSpec:
    """See `code.submission.packaged`."""
    from orchestrator.code.package import keep_package
    from orchestrator.code.submission import packaged

    def told(package: Package) -> None:
        say(f"packaged {len(package.files)} files of {spec.workload.code_dir}, {size(package.num_bytes)}")

    return packaged(spec, lambda package: keep_package(store_of(spec, home, secrets), package), told)


def check_storage(spec: JobSpec, home: Home, secrets: dict[str, str]) -> None:
    """Raises the StorageError that the job would meet, before anything is queued or started."""
    from orchestrator.storage import check_store

    check_store(store_of(spec, home, secrets))


def store_of(spec: JobSpec, home: Home, secrets: dict[str, str]) -> ObjectStore:
    """Where the job keeps what it makes; in the home where no other place is named."""
    from orchestrator.storage import open_store

    if not spec.storage.url:
        make_private(home.root)
    url = spec.storage.url or home.store.as_uri()
    return open_store(dataclasses.replace(spec.storage, url=url), {**os.environ, **secrets})
