"""Are the packages there that this program was made for?"""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Callable, Iterator, Sequence

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from orchestrator.control.checkup.finding import Finding, Subject, ok, problem

_SHOWN = ("ray", "torch", "deepspeed", "mlflow")


def check_versions(subject: Subject) -> Iterator[Finding]:
    found = importlib.metadata.metadata("orchestrator")
    return compare(found["Requires-Python"] or "", importlib.metadata.requires("orchestrator") or [])


def compare(
    needed_python: str, requirements: Sequence[str], python: str = platform.python_version(),
    installed: Callable[[str], str | None] | None = None,
) -> Iterator[Finding]:  # fmt: skip
    """`installed` gives the version of a package, None if it is not there."""
    version_of = installed or _installed
    wrong = list(_wrong(requirements, version_of))
    if not SpecifierSet(needed_python).contains(python, prereleases=True):
        wrong.append(problem(f"Python {python} runs, but {needed_python} is needed", f"install orchestrator with a Python {needed_python}"))
    shown = ", ".join(f"{name} {version}" for name in _SHOWN if (version := version_of(name)))
    yield from wrong or [ok(f"Python {python}, {shown}")]


def _wrong(requirements: Sequence[str], version_of: Callable[[str], str | None]) -> Iterator[Finding]:
    for requirement in map(Requirement, requirements):
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        version, wanted = version_of(requirement.name), f"{requirement.name}{requirement.specifier}"
        if version is None:
            yield problem(f"{requirement.name} is not installed", f"pip install '{wanted}'")
        elif not requirement.specifier.contains(version, prereleases=True):
            yield problem(f"{requirement.name} {version} is installed, but {requirement.specifier} is needed", f"pip install '{wanted}'")


def _installed(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
