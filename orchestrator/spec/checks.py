"""Checks that every part of a spec makes of its own values: the message names the flag, the value and what is allowed."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from orchestrator.errors import ConfigError

Options = Mapping[str, Any]
"""Free-form options of a workload, model or data set: JSON scalars, lists and nested mappings."""


def require(ok: bool, flag: str, value: object, allowed: str) -> None:
    if not ok:
        raise ConfigError(f"{flag}={value} is not possible: allowed is {allowed}.")


def at_least(least: float, group: str, part: Any, *names: str) -> None:
    for name in names:
        value = getattr(part, name)
        require(least <= value < math.inf, f"{group}.{name}", value, "0 or more" if least == 0 else f"at least {least}")
