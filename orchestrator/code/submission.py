"""The package of a job that is about to be submitted."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

from orchestrator.code.origin import Origin, origin_of
from orchestrator.code.package import Package, read_package
from orchestrator.spec import JobSpec


def packaged(spec: JobSpec, keep: Callable[[Package], bool], told: Callable[[Package], None] = lambda package: None) -> JobSpec:
    """The spec with the submitter's working directory kept in the job's store, if the workload stands in it.

    `keep` puts it there, unless it is there. `told` hears of a package that was not there yet. Raises ConfigError, StorageError.
    """
    code = spec.workload
    if origin_of(code.entrypoint, code.code_dir) is not Origin.FOLDER:
        return dataclasses.replace(spec, workload=dataclasses.replace(code, package=""))
    package = read_package(Path(code.code_dir), 1e6 * spec.environment.max_package_mb)
    if package.content_hash != code.package and keep(package):
        told(package)
    return dataclasses.replace(spec, workload=dataclasses.replace(code, package=package.content_hash))
