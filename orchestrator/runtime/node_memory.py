"""The slabs of a node's agents, removed when their agent is gone, however it went: the next one would not read them. Torch-free."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from orchestrator.checkpoints.slab import remove_slabs
from orchestrator.runtime import child

POLL_S = 0.05


@dataclass
class Owner:
    """An agent, by its process."""

    pid: int
    began: int | None
    slabs: set[tuple[str, str]] = field(default_factory=set)
    """(folder, how their names begin)."""
    went_s: float = 0.0

    def is_gone(self) -> bool:
        return self.began is None or child.start_time(self.pid) != self.began


class NodeMemory:
    """What was made after an agent went is the next one's, and stays."""

    def __init__(self) -> None:
        self._went: list[Owner] = []

    def owner(self, pid: int) -> Owner:
        return Owner(pid, child.start_time(pid))

    def used(self, owner: Owner, task: Mapping[str, Any]) -> None:
        """By the ranks of an agent. `task`: a RankTask as a dict."""
        if task.get("slab_stem"):
            owner.slabs.add((task["slab_folder"], task["slab_stem"]))

    def went(self, owner: Owner) -> None:
        """Its connection has closed, and its ranks were killed: they make nothing any more."""
        owner.went_s = time.time()
        self._went.append(owner)
        self.clear()

    def clear(self, wait_s: float = 0.0) -> None:
        """For those whose process has ended; the others are asked for again, here for `wait_s`."""
        limit = time.monotonic() + wait_s
        while True:
            for owner in [owner for owner in self._went if owner.is_gone()]:
                self._went.remove(owner)
                for folder, stem in sorted(owner.slabs):
                    remove_slabs(Path(folder), stem, owner.went_s)
            if not self._went or time.monotonic() >= limit:
                return
            time.sleep(POLL_S)
