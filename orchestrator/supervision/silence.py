"""Agents that are alive and do not act: stopped, or stuck. Ray tells only of those whose process has ended. Pure."""

from __future__ import annotations

from collections.abc import Mapping

SILENCE_LIMIT_S = 60.0
"""Many times as long as an agent says nothing (`rank_hub.BEAT_S`), also on a machine that has much too much to do."""
LONGEST_LOOK_S = 2.0
"""What the time since the last look counts for at most."""


class Silence:
    """How long each agent of an attempt has said nothing.

    Word that has arrived counts, whether it was read yet or not. Time counts only as it was looked at: a supervisor that was frozen as a
    whole has not heard what was said meanwhile.
    """

    def __init__(self, num_bundles: int) -> None:
        self._silent_s = dict.fromkeys(range(num_bundles), 0.0)
        self._arrived: dict[int, int] = {}
        self._looked_s: float | None = None

    def look(self, arrivals: Mapping[int, int], now_s: float) -> list[int]:
        """Bundles whose agent was silent for too long. `arrivals`: how often each has said something."""
        passed_s = 0.0 if self._looked_s is None else min(max(now_s - self._looked_s, 0.0), LONGEST_LOOK_S)
        for bundle in self._silent_s:
            is_silent = arrivals.get(bundle, 0) == self._arrived.get(bundle, 0)
            self._silent_s[bundle] = self._silent_s[bundle] + passed_s if is_silent else 0.0
        self._arrived, self._looked_s = dict(arrivals), now_s
        return [bundle for bundle, silent_s in self._silent_s.items() if silent_s > SILENCE_LIMIT_S]
