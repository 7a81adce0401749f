"""Where a job is to keep what it makes: tried before anything is queued, with the keys of who submits."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from typing import TYPE_CHECKING

from orchestrator.cli.screen import size
from orchestrator.control.submission import check_secrets, named_secrets
from orchestrator.paths import Home, make_private
from orchestrator.spec import JobSpec, StorageSpec
from orchestrator.spec.operations import TRACKING_SECRETS

if TYPE_CHECKING:
    from orchestrator.code.package import Package
    from orchestrator.storage import ObjectStore

STORAGE_SECRETS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE")


def secrets_for(spec: JobSpec, elsewhere: bool = False) -> dict[str, str]:
    """What the job's processes get from the submitter's environment: what the job names, and the keys of its store and of MLflow.

    They travel beside the spec, never in it. `elsewhere`: to a server. Raises ConfigError for one that is named and not set.
    """
    found = {**store_keys(spec.storage, elsewhere), **named_secrets(spec, os.environ)}
    check_secrets(found, spec)
    return found


def store_keys(storage: StorageSpec, elsewhere: bool = False) -> dict[str, str]:
    """The submitter's S3 keys and password for MLflow. `elsewhere`, at a server, nobody knows the submitter's AWS profile: the keys that it
    stands for now go in its place, unless there are keys beside it, which come before it."""
    wanted = (*TRACKING_SECRETS, *(STORAGE_SECRETS if storage.url.startswith("s3://") else ()))
    found = {name: os.environ[name] for name in wanted if name in os.environ}
    if elsewhere and (profile := found.pop("AWS_PROFILE", "")) and "AWS_ACCESS_KEY_ID" not in found:
        from orchestrator.storage.s3 import keys_of  # boto3 takes 0.3 s to import

        return {**keys_of(profile), **found}
    return found


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
