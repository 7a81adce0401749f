"""How long this rank computes in a step before it waits for another one: what tells a straggler from those that wait for it.

Counted are the phases in which no rank waits for another: loading, and the forward pass where it has no collective in it (not under ZeRO
3, tensor, sequence or expert parallelism: there only loading is counted). The backward pass holds the exchange of gradients. A host runs
ahead of its GPU, so there the forward pass is timed by events on the device, which are read where the ranks vote anyway.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

from orchestrator.layout import Layout
from orchestrator.runtime.link import Phase

WINDOW_STEPS = 10
"""Steps between two reports at least; of a window the median step counts, so that a slow one changes nothing."""


def is_forward_alone(layout: Layout) -> bool:
    """Whether a forward pass waits for no other rank."""
    sizes = layout.tensor_parallel_size, layout.sequence_parallel_size, layout.expert_parallel_size
    return layout.zero_stage < 3 and sizes == (1, 1, 1)


class ComputeTime:
    """`begin`, `tick` for each phase, `end`: one step."""

    def __init__(
        self, layout: Layout, rank: int, step: int, on_device: bool, clock: Callable[[], float] = time.perf_counter,
        new_event: Callable[[], Any] = lambda: torch.cuda.Event(enable_timing=True),
    ) -> None:  # fmt: skip
        """`step` steps are done. `on_device`: the forward pass runs on a GPU; `new_event` makes what times it."""
        alone = is_forward_alone(layout)
        self._on_host = (Phase.DATA, Phase.FORWARD) if alone and not on_device else (Phase.DATA,)
        self._marks_forward = alone and on_device
        self._rank, self._world_size = rank, layout.world_size
        self._clock, self._new_event = clock, new_event
        self._window_from = step
        self._closed = 0, 0.0
        self.newest: dict[str, float] = {}
        """For people, of the window that was told last: the usual rank's time, and the slowest rank's."""
        self._steps: list[tuple[float, float, list[Any]]] = []
        """Of each step of the window: seconds counted by the host, seconds in all, events around each forward pass."""

    def begin(self) -> None:
        """A step begins, by loading."""
        self._phase, self._spent_s = Phase.DATA, 0.0
        self._events: list[Any] = []
        self._begun_s = self._since_s = self._clock()

    def tick(self, phase: Phase) -> None:
        """What was done until now ends, `phase` begins."""
        now = self._clock()
        if self._phase in self._on_host:
            self._spent_s += now - self._since_s
        if self._marks_forward and (phase is Phase.FORWARD) is not (self._phase is Phase.FORWARD):
            event = self._new_event()
            event.record()
            self._events.append(event)
        self._phase, self._since_s = phase, now

    def end(self) -> None:
        if self._world_size > 1:
            self._steps.append((self._spent_s, self._clock() - self._begun_s, self._events))

    def is_due(self, step: int) -> bool:
        """Whether the window is long enough, and there is anybody to be compared with; the same on all ranks."""
        return self._world_size > 1 and step - self._window_from >= WINDOW_STEPS

    def close(self, step: int) -> list[float]:
        """This rank's seconds in the place of its rank, zeros in those of others: for a sum over the ranks. A new window begins.

        Waits for the device's last forward pass.
        """
        mine = statistics.median(spent_s + _elapsed_s(events) for spent_s, _, events in self._steps)
        self._closed = step - self._window_from, statistics.median(whole_s for _, whole_s, _ in self._steps)
        self._steps, self._window_from = [], step
        return [mine if rank == self._rank else 0.0 for rank in range(self._world_size)]

    def told(self, seconds: Sequence[float]) -> dict[str, Any]:
        """The fields of a `computed` message: `seconds` of all ranks, in the window that was closed last."""
        slowest = max(range(len(seconds)), key=seconds.__getitem__)
        usual = {"compute_time_s": statistics.median(seconds), "compute_time_max_s": seconds[slowest]}
        self.newest = {**usual, "compute_time_slowest_rank": float(slowest)}
        steps, step_s = self._closed
        return {"steps": steps, "step_s": step_s, "seconds": list(seconds)}


def _elapsed_s(events: list[Any]) -> float:
    """Between the first and the second, the third and the fourth ..."""
    if events:
        events[-1].synchronize()
    return sum(before.elapsed_time(after) for before, after in zip(events[::2], events[1::2], strict=True)) / 1000
