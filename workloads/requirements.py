"""How a workload refuses an option."""

from __future__ import annotations

from orchestrator.errors import ConfigError


def require(ok: bool, flag: str, value: object, allowed: str) -> None:
    """Raises ConfigError with the flag, the value and what is allowed, unless `ok`."""
    if not ok:
        raise ConfigError(f"{flag}={value} is not possible: allowed is {allowed}.")
