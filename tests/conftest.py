"""Which tests may run beside which, under `pytest -n`."""

from __future__ import annotations

import pytest
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling

ALONE = ("tests/e2e", "tests/fault", "tests/integration/supervision", "tests/integration/runtime")
"""Folders whose tests run one after the other: clusters, and ranks that compute. Of the others each file is a group."""


class Groups(LoadScopeScheduling):
    def _split_scope(self, nodeid: str) -> str:
        return next((folder for folder in ALONE if nodeid.startswith(f"{folder}/")), nodeid.split("::", 1)[0])


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> Groups:
    return Groups(config, log)
