"""What a check finds, and what it is asked about."""

from __future__ import annotations

import enum
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from orchestrator.paths import Home
from orchestrator.spec import ClusterSpec, StorageSpec, TrackingSpec


class Level(enum.Enum):
    OK = "ok"
    WARNING = "warning"  # jobs run, but slower, or not all of them
    PROBLEM = "problem"  # jobs fail, or secrets are open


@dataclass(frozen=True)
class Finding:
    level: Level
    message: str
    fix: str = ""
    """What to type, or what to change; empty where nothing is wrong."""


@dataclass(frozen=True, kw_only=True)
class Subject:
    """The machine as this process sees it, and what its jobs use."""

    home: Home
    storage: StorageSpec = field(default_factory=StorageSpec)
    tracking: TrackingSpec = field(default_factory=TrackingSpec)
    cluster: ClusterSpec = field(default_factory=ClusterSpec)
    environ: Mapping[str, str] = field(default_factory=lambda: os.environ)
    user_home: Path = field(default_factory=Path.home)
    devices: Path = Path("/dev")
    """Where the devices of the machine are."""


def ok(message: str) -> Finding:
    return Finding(Level.OK, message)


def warning(message: str, fix: str) -> Finding:
    return Finding(Level.WARNING, message, fix)


def problem(message: str, fix: str) -> Finding:
    return Finding(Level.PROBLEM, message, fix)
