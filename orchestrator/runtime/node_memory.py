"""The slabs of a node's agents, for the one that outlives them: a raylet that is killed takes its agents with it. Torch-free."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from orchestrator.checkpoints.slab import remove_slabs

TOGETHER_S = 10.0
"""An agent that went so shortly before the raylet was missed went with it; another has given its slabs up, or the next one has."""
MOST_GONE = 64

Slabs = set[tuple[str, str]]
"""(folder, how their names begin)."""


class NodeMemory:
    def __init__(self) -> None:
        self._of: dict[int, Slabs] = {}
        self._gone: list[tuple[float, Slabs]] = []

    def used(self, agent: int, task: Mapping[str, Any]) -> None:
        """By the ranks of an agent. `task`: a RankTask as a dict."""
        if task.get("slab_stem"):
            self._of.setdefault(agent, set()).add((task["slab_folder"], task["slab_stem"]))

    def agent_went(self, agent: int) -> None:
        self._gone = [*self._gone[1 - MOST_GONE :], (time.time(), self._of.pop(agent, set()))]

    def node_is_lost(self, missed_s: float) -> None:
        """Remove what those who went with it have left. What was made after `missed_s`, in seconds since 1970, is another agent's."""
        for folder, stem in sorted({place for went_s, slabs in self._gone if went_s > missed_s - TOGETHER_S for place in slabs}):
            remove_slabs(Path(folder), stem, missed_s)
