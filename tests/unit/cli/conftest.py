from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.paths import Home


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    """An empty home, which commands find by $ORCHESTRATOR_HOME."""
    monkeypatch.setenv("ORCHESTRATOR_HOME", str(tmp_path / "home"))
    return Home.find()
