"""Orders on their way to a supervisor: each of its lives is told once, and again if it was not reached."""

from __future__ import annotations

import logging
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from orchestrator.control.nodes.groups import WorkerGroups
from orchestrator.job import Job

log = logging.getLogger("controller")


@dataclass
class Orders:
    groups: WorkerGroups
    told: dict[str, str] = field(default_factory=dict)
    """Order to leave -> the supervisor's life that got it."""
    notices: dict[str, Future[Any]] = field(default_factory=dict)
    stop_sent: tuple[str, str] | None = None
    """(how, the supervisor's life that was told)."""
    stopping: Future[Any] | None = None

    def leave(self, order: str, job: Job, source: str, send: Callable[[], Future[Any]]) -> None:
        """`source`: the life of the supervisor that is to hear it."""
        notice = self.notices.get(order)
        if notice is not None and notice.done():
            if notice.exception() is not None:
                log.warning("%s of %s failed: %s", order, job.id, notice.exception())
                self.told.pop(order, None)
            del self.notices[order]
        if self.told.get(order, "") != source:
            self.told[order], self.notices[order] = source, send()

    def stop(self, job: Job, source: str, may_send: bool) -> bool:
        """Whether an order to stop was sent just now. `source`: as for `leave`; empty: it has not been heard yet."""
        if self.stopping is not None and self.stopping.done():
            if self.stopping.exception() is not None:
                log.warning("stop of %s failed: %s", job.id, self.stopping.exception())
                self.stop_sent = None
            self.stopping = None
        order = (job.stop_requested, source)
        if not job.stop_requested or self.stop_sent == order or not may_send:
            return False
        self.stop_sent, self.stopping = order, self.groups.stop(job, job.stop_requested)
        return True
