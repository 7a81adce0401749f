"""The user's workload, found by `module:Class`. Torch-free as long as the workload is."""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import inspect
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from orchestrator.code.cache import unpack
from orchestrator.code.origin import file_in, import_name, shipped_file
from orchestrator.errors import ConfigError, WorkloadError, nearest
from orchestrator.spec import JobSpec
from orchestrator.storage import open_store
from orchestrator.workload import REQUIRED, Workload


def with_code(spec: JobSpec, cache: Path) -> JobSpec:
    """The spec with the folder of its code on this node, unpacked if it has to be. Raises StorageError."""
    if not spec.workload.package:
        return spec
    folder = unpack(open_store(spec.storage), spec.workload.package, cache)
    return dataclasses.replace(spec, workload=dataclasses.replace(spec.workload, code_dir=str(folder)))


def workload_file(spec: JobSpec) -> str:
    """Where the workload's module stands, found without running it; empty if it is not found. Puts the code folder on the path."""
    _add_code_dir(spec)
    try:
        found = importlib.util.find_spec(import_name(spec.workload.entrypoint.split(":")[0]))
    except (ImportError, ValueError):
        return ""  # `load_workload` says what is wrong
    return (found.origin or "") if found else ""


def load_workload(spec: JobSpec) -> Workload:
    """Import the entry point, check it, build it. Raises WorkloadError, and whatever the user's own code raises."""
    _add_code_dir(spec)
    module = _import(spec)
    chosen = _class_of(module, spec)
    missing = [name for name in REQUIRED if not callable(getattr(chosen, name, None))]
    if missing:
        found = f"{chosen.__name__} of {module.__name__}"
        raise WorkloadError(f"workload.entrypoint={spec.workload.entrypoint}: {found} has no method {', '.join(missing)}.")
    stages = spec.parallelism.pipeline_parallel_size
    if stages > 1 and not callable(getattr(chosen, "layers", None)):
        found = f"{chosen.__name__} of {module.__name__} has no method layers() that says where to cut"
        raise ConfigError(f"parallelism.pipeline_parallel_size={stages} is not possible: allowed is 1, because {found}.")
    workload: Workload = chosen(spec)
    if not hasattr(workload, "tokens_per_sample"):
        found = f"{chosen.__name__} of {module.__name__}"
        raise WorkloadError(f"workload.entrypoint={spec.workload.entrypoint}: {found} has no attribute tokens_per_sample (0: none).")
    return workload


def _add_code_dir(spec: JobSpec) -> None:
    """What is shipped needs none; a file beside the submitter must not take the place of a module of ours."""
    folder = spec.workload.code_dir
    if shipped_file(spec.workload.entrypoint.split(":")[0]) is not None:
        return
    if folder and sys.path[0] != folder:
        sys.path.insert(0, folder)
        importlib.invalidate_caches()
        _give_way(Path(folder))


def _give_way(folder: Path) -> None:
    """The warm process has imported what is shipped; a package of that name in the user's folder comes before it."""
    own, known = file_in(folder, "workloads"), sys.modules.get("workloads")
    if own is not None and known is not None and known.__file__ != str(own):
        for name in [name for name in sys.modules if name.partition(".")[0] == "workloads"]:
            del sys.modules[name]


def _import(spec: JobSpec) -> ModuleType:
    name = import_name(spec.workload.entrypoint.split(":")[0])
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not (name == error.name or name.startswith(f"{error.name}.")):
            raise  # something that the workload itself imports
        where = f" Looked first in {spec.workload.code_dir}." if spec.workload.code_dir else ""
        raise WorkloadError(f"workload.entrypoint={spec.workload.entrypoint}: there is no module '{name}'.{where}") from None


def _class_of(module: ModuleType, spec: JobSpec) -> type[Any]:
    name = spec.workload.entrypoint.split(":")[1]
    found = getattr(module, name, None)
    if inspect.isclass(found):
        return found
    classes = [key for key, value in vars(module).items() if inspect.isclass(value) and value.__module__ == module.__name__]
    known = f"It has: {', '.join(classes) or 'none'}.{nearest(name, classes)}"
    raise WorkloadError(f"workload.entrypoint={spec.workload.entrypoint}: the module '{module.__name__}' has no class '{name}'. {known}")
