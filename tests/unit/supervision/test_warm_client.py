"""Which warm process a job gets."""

from __future__ import annotations

from pathlib import Path

from orchestrator.paths import Home
from orchestrator.supervision.warm_client import socket_path


def test_jobs_with_the_same_variables_share_one(tmp_path: Path) -> None:
    home = Home(tmp_path)
    plain, first = socket_path(home), socket_path(home, variables={"A": "1", "B": "2"})
    assert socket_path(home, variables={"B": "2", "A": "1"}) == first != plain == socket_path(home, variables={})
    assert socket_path(home, variables={"A": "1"}) not in (plain, first)
