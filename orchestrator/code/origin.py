"""Where the workload of an entry point comes from. Names are looked up, never imported: that would take seconds, and run foreign code.

A workload is shipped (a file of `workloads`), or stands in the working directory, which is packaged, or belongs to an installed package
that offers it: `[project.entry-points."orchestrator.workloads"]` with `name = "my_package.module:MyWorkload"`. Nothing else has a name.
"""

from __future__ import annotations

import enum
import importlib.metadata
from pathlib import Path

from orchestrator.errors import ConfigError, nearest

GROUP = "orchestrator.workloads"
_PACKAGE = Path(__file__).resolve().parents[1]


class Origin(enum.Enum):
    SHIPPED = "shipped"
    FOLDER = "working directory"
    INSTALLED = "installed"


def origin_of(entrypoint: str, code_dir: str) -> Origin:
    """Raises ConfigError for a name that leads nowhere, with the nearest one that does."""
    module = entrypoint.split(":")[0]
    if shipped_file(module) is not None:
        return Origin.SHIPPED
    if file_in(Path(code_dir), module) is not None:
        return Origin.FOLDER
    offered = _offered()
    if entrypoint in offered:
        return Origin.INSTALLED
    known = [
        *sorted(path.stem for path in Path(code_dir).glob("*.py")),
        *(f"workloads.{path.stem}" for path in shipped_folder().glob("*.py")),
    ]
    near = nearest(entrypoint, offered) or nearest(module, known)
    raise ConfigError(
        f"workload.entrypoint={entrypoint} is not possible: there is no module '{module}' in {code_dir}, and no installed package offers "
        f"it as an entry point of '{GROUP}'.{near}"
    )


def source_file(entrypoint: str, code_dir: str) -> Path | None:
    """Of a workload that is shipped or stands in the working directory."""
    module = entrypoint.split(":")[0]
    return shipped_file(module) or file_in(Path(code_dir), module)


def shipped_file(module: str) -> Path | None:
    package, _, name = module.partition(".")
    file = shipped_folder() / f"{name}.py"
    return file if package == "workloads" and name and file.is_file() else None


def shipped_modules() -> list[str]:
    """Names to import the shipped workloads by."""
    return sorted(import_name(f"workloads.{path.stem}") for path in shipped_folder().glob("*.py") if path.stem != "__init__")


def import_name(module: str) -> str:
    """Of the module of an entry point. In an installed wheel the shipped workloads stand inside the package."""
    inside = shipped_file(module) is not None and shipped_folder().parent == _PACKAGE
    return f"{_PACKAGE.name}._{module}" if inside else module


def file_in(folder: Path, module: str) -> Path | None:
    """A module's file, or a package's `__init__.py`."""
    path = folder.joinpath(*module.split("."))
    return next((file for file in (path.with_suffix(".py"), path / "__init__.py") if file.is_file()), None)


def shipped_folder() -> Path:
    """In the wheel inside the package, in a checkout beside it."""
    inside = _PACKAGE / "_workloads"
    return inside if inside.is_dir() else _PACKAGE.parent / "workloads"


def _offered() -> list[str]:
    return sorted({point.value for point in importlib.metadata.entry_points(group=GROUP)})
