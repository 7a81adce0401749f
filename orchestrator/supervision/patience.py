"""While the object store is out of reach, training goes on and who needs the store asks again."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TypeVar

from orchestrator.errors import StorageUnavailable

RETRY_DELAYS_S = (1.0, 2.0, 4.0, 8.0, 16.0)
"""On top of the store's own retries."""

log = logging.getLogger("orchestrator.supervisor")
Result = TypeVar("Result")


def persist(call: Callable[[], Result], pause: Callable[[float], bool]) -> Result:
    """`call()`, again while the store cannot be reached. The last StorageUnavailable comes out; every other error at once.

    `pause(seconds)` waits and returns True if there is no time for more than one more try.
    """
    for delay_s in RETRY_DELAYS_S:
        try:
            return call()
        except StorageUnavailable as error:
            log.warning("the object store is out of reach, next try in %.0f s: %s", delay_s, error)
            if pause(delay_s):
                break
    return call()
