"""Which tests may run beside which, under `pytest -n`."""

from __future__ import annotations

from pathlib import Path

import pytest

TESTS = Path(__file__).parent
ALONE = ("e2e", "fault", "integration/supervision", "integration/runtime")
"""Folders whose tests run one after the other: clusters, and ranks that compute. Of the others each file is a group."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        name = item.path.relative_to(TESTS).as_posix()
        item.add_marker(pytest.mark.xdist_group(next((folder for folder in ALONE if name.startswith(f"{folder}/")), name)))
