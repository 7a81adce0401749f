"""How long tests wait for what has to come: a limit ends a test that hangs, and says nothing of how fast anything is."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

LIMIT_S = 300.0
"""For what takes seconds on a machine that has nothing else to do."""
TRAINING_LIMIT_S = 900.0
"""For a group of ranks, or a program that runs several of them: below the limit of a test (`timeout` in pyproject.toml)."""


def wait_until(condition: Callable[[], Any], what: str = "", limit_s: float = LIMIT_S) -> Any:
    """What `condition` gives as soon as that counts as true."""
    limit = time.monotonic() + limit_s
    while not (found := condition()):
        assert time.monotonic() < limit, f"not within {limit_s:g} s: {what or condition}"
        time.sleep(0.01)
    return found
