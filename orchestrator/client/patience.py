"""A question that is asked again while a server, or what it needs, is out of reach."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from orchestrator.errors import ClusterError, OrchestratorError, StorageUnavailable, StoreUnavailable

_T = TypeVar("_T")

AWAY = (ClusterError, StoreUnavailable, StorageUnavailable)
"""A server, or what it needs, is out of reach."""
PATIENCE_S = 120.0
"""How long before somebody who follows a job gives up."""


def patiently(
    ask: Callable[[], _T], trouble: Callable[[OrchestratorError], None] = lambda error: None, patience_s: float = PATIENCE_S,
    sleep: Callable[[float], None] = time.sleep,
) -> _T:  # fmt: skip
    """The answer. `trouble` hears of the first failure. Raises the last one when the patience is over."""
    pause_s, began, told = 0.1, time.monotonic(), False
    while True:
        try:
            return ask()
        except AWAY as error:
            left_s = patience_s - (time.monotonic() - began)
            if left_s <= 0:
                raise
            if not told:
                trouble(error)
            told = True
        sleep(min(pause_s, left_s))
        pause_s = min(5.0, 2 * pause_s)
