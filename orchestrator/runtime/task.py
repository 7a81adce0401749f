"""What a rank is told when it is forked. Torch-free; crosses processes as JSON."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class RankTask:
    """Everything a rank's process needs. Secrets are not here: they come in the environment."""

    job_id: str
    run: int
    epoch: int
    spec: dict[str, Any]
    """`spec.to_dict(JobSpec)`, with storage.url filled in."""
    rank: int
    world_size: int
    local_rank: int
    local_world_size: int
    master_address: str
    master_port: int
    agent_socket: str
    clock: str
    """Path of this rank's progress clock."""
    cache_dir: str
    """Node-local folder for data shards that come from an object store."""
    slab_folder: str = ""
    """Where this node's memory is kept under names."""
    slab_stem: str = ""
    """How the names of the job's slabs on this node begin."""
    commits: list[str] = dataclasses.field(default_factory=list)
    """Keys of the commits to continue from, newest first; the ranks fall back along it together. Empty: from the start."""
    skipped: list[list[int]] = dataclasses.field(default_factory=list)
    """Global positions of samples that are passed over: [from, to]."""
    faults: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    """Of the chaos mode (`chaos.plan.Fault` as a dict): what this rank is to bring upon itself."""

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    def after_skipped(self, position: int) -> int:
        """Where a step begins that would begin at the global `position`."""
        for first, end in sorted(self.skipped):
            if first <= position < end:
                position = end
        return position

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> RankTask:
        return cls(**values)
