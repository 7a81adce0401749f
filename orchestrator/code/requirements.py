"""Has this node the Python packages that a job names?"""

from __future__ import annotations

import importlib.metadata
import socket
from collections.abc import Sequence

from packaging.requirements import InvalidRequirement, Requirement

from orchestrator.errors import ConfigError


def check_requirements(requirements: Sequence[str]) -> None:
    """Raises ConfigError with what is missing on this node."""
    wrong = [why for text in requirements if (why := _why_not(text))]
    if wrong:
        raise ConfigError(
            f"environment.requirements={list(requirements)} is not met on node {socket.gethostname()}: {'; '.join(wrong)}. Packages are "
            "not installed for a job: build them into the nodes' image, or put pure Python code into the working directory."
        )


def _why_not(text: str) -> str:
    try:
        wanted = Requirement(text)
    except InvalidRequirement as error:
        return f"'{text}' is no requirement ({str(error).splitlines()[0]})"
    try:
        version = importlib.metadata.version(wanted.name)
    except importlib.metadata.PackageNotFoundError:
        return f"{wanted.name} is not installed"
    return "" if wanted.specifier.contains(version, prereleases=True) else f"{wanted.name} is {version}, not {wanted.specifier}"
