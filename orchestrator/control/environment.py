"""The environment of every process that speaks to a Ray cluster; it must be set before `import ray`."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from orchestrator.control.processes import CLUSTER_MARK, HOME_MARK
from orchestrator.paths import Home, write_private


def ensure_token(home: Home) -> None:
    """Make the token that only this home's processes know."""
    if not home.token.exists():
        write_private(home.token, secrets.token_hex(32))


def local_environment(home: Home, address: str, cluster_id: str) -> dict[str, str]:
    """For all processes of a local cluster."""
    return {
        **_shared(home, address),
        CLUSTER_MARK: cluster_id,
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(home.token),
        "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",  # jobs are drained by their supervisors, not by Ray's half a minute of waiting
    }


def remote_environment(home: Home, address: str) -> dict[str, str]:
    """For the controller of a cluster that others started. What the user set or keeps in Ray's own place comes first."""
    own = _shared(home, address)
    if "RAY_AUTH_MODE" in os.environ:
        return own
    if (Path.home() / ".ray" / "auth_token").exists():
        return {**own, "RAY_AUTH_MODE": "token"}
    if home.token.exists():
        return {**own, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(home.token)}
    return own


def _shared(home: Home, address: str) -> dict[str, str]:
    return {HOME_MARK: str(home.root), "RAY_ADDRESS": address, "RAY_USAGE_STATS_ENABLED": "0", "PYTHONUNBUFFERED": "1"}
