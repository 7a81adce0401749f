"""Whether the ranks of a node still move: their progress clocks, looked at four times a second. No Ray."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping

from orchestrator.runtime.link import Phase, Reading
from orchestrator.supervision.vital import start_vital

PERIOD_S = 0.25
P99_STEPS = 5.0
"""A rank may stand still for so many times what 99 % of its steps have taken."""
PART = 0.8
"""Of that time, after which a rank is looked at: when the time is over, the hang is known and the ranks are on their way again."""
EVALUATION = 12.0
"""For so many times longer in an evaluation: a batch of it is no step, and its end is the workload's own code."""
USUAL = (Phase.DATA, Phase.FORWARD, Phase.BACKWARD, Phase.COLLECTIVE, Phase.OPTIMIZER)


def limit_s(reading: Reading, hang_timeout_s: float, long_phase_timeout_s: float) -> float:
    """How long a rank may stand where `reading` says it is, in seconds."""
    usual_s = PART * max(hang_timeout_s, P99_STEPS * reading.step_p99_s)
    if reading.step_p99_s and reading.phase in USUAL:
        return usual_s
    if reading.step_p99_s and reading.phase is Phase.EVALUATION:
        return EVALUATION * usual_s
    return max(long_phase_timeout_s, usual_s)


class Stillness:
    """How long each rank has stood still, and whether none moves any more: as long as one does, the others may be waiting for it.

    Time counts only as it was watched: a machine that was frozen as a whole, and this process with it, has not stood still.
    """

    def __init__(self, hang_timeout_s: float, long_phase_timeout_s: float) -> None:
        self._limits = hang_timeout_s, long_phase_timeout_s
        self._seen: dict[int, Reading] = {}
        self._still_s: dict[int, float] = {}

    def look(self, readings: Mapping[int, Reading], elapsed_s: float) -> bool:
        """`elapsed_s` since the last look. True: every rank has stood still for longer than it may."""
        self._still_s = {
            rank: self._still_s[rank] + min(elapsed_s, 2 * PERIOD_S) if self._seen.get(rank) == reading else 0.0
            for rank, reading in readings.items()
        }
        self._seen = dict(readings)
        return bool(readings) and all(self._still_s[rank] > limit_s(reading, *self._limits) for rank, reading in readings.items())

    def still_s(self, rank: int) -> float:
        """Seconds; 0 for a rank that was never seen."""
        return self._still_s.get(rank, 0.0)


class Watch:
    """Tells once when all ranks of the node stand still, and once when one moves again. Its thread ends with `close`."""

    def __init__(
        self, readings: Callable[[], Mapping[int, Reading]], tell: Callable[[bool], None], hang_timeout_s: float,
        long_phase_timeout_s: float,
    ) -> None:  # fmt: skip
        """`readings` and `tell(hangs)` are called on another thread."""
        self._readings = readings
        self._tell = tell
        self.stillness = Stillness(hang_timeout_s, long_phase_timeout_s)
        self._closed = threading.Event()
        self._thread = start_vital("watch", self._run)

    def close(self) -> None:
        """Nothing is read or told any more when this returns."""
        self._closed.set()
        self._thread.join()

    def _run(self) -> None:
        told, looked_s = False, time.monotonic()
        while not self._closed.wait(PERIOD_S):
            now = time.monotonic()
            hangs = self.stillness.look(self._readings(), now - looked_s)
            looked_s = now
            if hangs is not told and not self._closed.is_set():
                told = hangs
                self._tell(hangs)
