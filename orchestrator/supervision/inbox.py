"""What comes in to a job's run from other threads: reports of agents, deaths, orders to leave."""

from __future__ import annotations

import queue
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from orchestrator.supervision.preemption import Preemption

Message = Mapping[str, Any]


@dataclass(frozen=True)
class FromAgent:
    bundle: int
    messages: Sequence[Message]

    @property
    def is_beat(self) -> bool:
        """It says only that the agent acts."""
        return all(message["type"] == "clocks" for message in self.messages)


@dataclass(frozen=True)
class AgentDied:
    bundle: int
    why: str


class Inbox:
    def __init__(self) -> None:
        self._queue: queue.SimpleQueue[FromAgent | AgentDied | None] = queue.SimpleQueue()
        self.arrivals: Counter[int] = Counter()
        """Bundle -> how often its agent has said something."""
        self.stop_mode = ""
        """'' | 'limit' | 'drain' | 'now', by the user or by the time limit that he gave; only ever grows stronger."""
        self.preemption: Preemption | None = None
        """The one with the earliest deadline."""
        self.resizing = ""
        """Why the job is to leave and to start again with another number of workers."""

    def put(self, item: FromAgent | AgentDied) -> None:
        if isinstance(item, FromAgent):
            self.arrivals[item.bundle] += 1
        self._queue.put(item)

    def stop(self, mode: str) -> None:
        if self.stop_mode != "now":  # of the others the newer: a user who stops it says more than its limit
            self.stop_mode = mode
        self._queue.put(None)

    def preempt(self, preemption: Preemption) -> None:
        if self.preemption is None or preemption.deadline_s < self.preemption.deadline_s:
            self.preemption = preemption
            self._queue.put(None)

    def resize(self, why: str) -> None:
        self.resizing = why
        self._queue.put(None)

    def get(self, timeout_s: float) -> FromAgent | AgentDied | None:
        """None: nothing came, or a new order."""
        try:
            return self._queue.get(timeout=max(timeout_s, 0.0))
        except queue.Empty:
            return None

    def rest(self) -> Iterator[FromAgent | AgentDied]:
        """All that lies there now. Does not wait."""
        while not self._queue.empty():
            item = self._queue.get()
            if item is not None:
                yield item

    @property
    def stops(self) -> bool:
        """By the user's order, by a preemption or for another number of workers."""
        return bool(self.stop_mode or self.resizing) or self.preemption is not None

    def stops_now(self) -> bool:
        return self.stop_mode == "now"
