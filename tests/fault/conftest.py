"""A cluster of its own for each file; real stores for the faults of checkpoints."""

from __future__ import annotations

import uuid

import pytest
from harness import Sandbox
from object_stores import opened, seaweedfs

from orchestrator.storage import DirectoryStore


@pytest.fixture(scope="session")
def endpoint():
    with seaweedfs() as found:
        yield found


@pytest.fixture(params=["directory", "seaweedfs"])
def store(request, tmp_path):
    """A folder and a real S3 server, each empty."""
    if request.param == "directory":
        return DirectoryStore(tmp_path / "store")
    return opened(request.getfixturevalue("endpoint"), f"faults-{uuid.uuid4()}")


@pytest.fixture(scope="module")
def sandbox():
    box = Sandbox()
    yield box
    box.close()
