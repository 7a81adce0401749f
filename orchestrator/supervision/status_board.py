"""What a supervisor shows of its job: state, figures, events. Written by one thread, read by others."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

from orchestrator.events import Event, EventKind
from orchestrator.job import JobResult, JobState, Progress, progress_to_dict, result_to_dict

WINDOW = 50
"""Log steps over which the time of a step is averaged."""


class StatusBoard:
    def __init__(self, job_id: str, max_steps: int, source: str, clock: Callable[[], float] = time.time) -> None:
        """`source` names this life of the supervisor; event numbers start at 1 in each."""
        self._job_id = job_id
        self._source = source
        self._clock = clock
        self._lock = threading.Lock()
        self._state = JobState.STARTING
        self._progress = Progress(max_steps=max_steps, phase="starting", updated_s=clock())
        self._events: list[Event] = []
        self._ended = False
        self._unwritten: JobResult | None = None
        self._recent: deque[tuple[int, float]] = deque(maxlen=WINDOW)

    @property
    def progress(self) -> Progress:
        return self._progress

    @property
    def state(self) -> JobState:
        return self._state

    def snapshot(self, after_event: int) -> dict[str, Any]:
        """JSON-ready: `state`, `progress`, `events` [[number, event]] with numbers above `after_event`, `ended`, `source`, `unwritten`."""
        with self._lock:
            return {
                "state": self._state.value,
                "progress": progress_to_dict(self._progress),
                "events": [[number + 1, _to_dict(self._events[number])] for number in range(max(after_event, 0), len(self._events))],
                "ended": self._ended,
                "source": self._source,
                "unwritten": None if self._unwritten is None else result_to_dict(self._unwritten),
            }

    def move(self, state: JobState, phase: str) -> None:
        with self._lock:
            self._state = state
        self.show(phase=phase)

    def show(self, **figures: Any) -> None:
        """Replace fields of the progress."""
        with self._lock:
            self._progress = dataclasses.replace(self._progress, updated_s=self._clock(), **figures)

    def event(self, kind: EventKind, message: str, **fields: Any) -> Event:
        event = Event(kind=kind, job_id=self._job_id, time_s=self._clock(), message=message, fields=fields)
        with self._lock:
            self._events.append(event)
        return event

    def end(self, unwritten: JobResult | None = None) -> None:
        """`unwritten`: how the job ended, if the store did not take it."""
        with self._lock:
            self._ended, self._unwritten = True, unwritten

    def trained(self, step: int, values: Mapping[str, float], time_s: float) -> None:
        """Metrics of a log step: loss, rates, and how long the rest will take."""
        self._recent.append((step, time_s))
        figures = {name: values[name] for name in ("tokens_per_s", "samples_per_s", "loss") if name in values}
        self.show(step=step, eta_s=self._eta_s(step), **figures)

    def forget_pace(self) -> None:
        """A restart stands between the steps before and after it."""
        self._recent.clear()

    def _eta_s(self, step: int) -> float | None:
        (first, began_s), (last, now_s) = self._recent[0], self._recent[-1]
        if last <= first:
            return None
        return max(self._progress.max_steps - step, 0) * (now_s - began_s) / (last - first)


def _to_dict(event: Event) -> dict[str, Any]:
    return {**dataclasses.asdict(event), "kind": event.kind.value}
