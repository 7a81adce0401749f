"""What is fixed about one run of a job while a supervisor lives."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from orchestrator.paths import Home, JobKeys
from orchestrator.runtime.task import RankTask
from orchestrator.spec import JobSpec, to_dict
from orchestrator.supervision.ledger import Wait


@dataclass(frozen=True, kw_only=True)
class RunContext:
    job_id: str
    run: int
    spec: JobSpec
    home: Home
    ranks_per_bundle: tuple[int, ...]
    secrets: Mapping[str, str] = field(default_factory=dict, repr=False)
    """Environment variables of the job's processes: S3 keys."""

    wait: Wait = field(default_factory=Wait)
    """What the run has waited for its place."""
    skipped: tuple[tuple[int, int], ...] = ()
    """Global positions of samples that are passed over: from, to."""

    @property
    def keys(self) -> JobKeys:
        return JobKeys(self.job_id)

    @property
    def world_size(self) -> int:
        return sum(self.ranks_per_bundle)

    def first_rank(self, bundle: int) -> int:
        return sum(self.ranks_per_bundle[:bundle])

    def ranks(self, bundle: int) -> range:
        first = self.first_rank(bundle)
        return range(first, first + self.ranks_per_bundle[bundle])

    def with_secrets(self) -> RunContext:
        """Read from the home; they are never an argument of an actor, which Ray would keep."""
        path = self.home.secrets(self.job_id)
        return dataclasses.replace(self, secrets=json.loads(path.read_text())) if path.exists() else self

    def with_micro_batch_size(self, size: int) -> RunContext:
        """The same run in smaller portions; the global batch stays."""
        training = dataclasses.replace(self.spec.training, micro_batch_size=size)
        return dataclasses.replace(self, spec=dataclasses.replace(self.spec, training=training))

    def without(self, *windows: tuple[int, int]) -> RunContext:
        """The same run, which passes over the samples at these global positions too."""
        return dataclasses.replace(self, skipped=(*self.skipped, *windows))

    def rank_tasks(self, epoch: int, commits: Sequence[str]) -> list[dict[str, Any]]:
        """What each rank is told, by rank; rendezvous, socket and clock are filled in where they are known."""
        spec = to_dict(self.spec)
        places = [(local_rank, count) for count in self.ranks_per_bundle for local_rank in range(count)]
        return [
            RankTask(
                job_id=self.job_id, run=self.run, epoch=epoch, spec=spec, rank=rank, world_size=self.world_size, local_rank=local_rank,
                local_world_size=count, master_address="", master_port=0, agent_socket="", clock="",
                cache_dir=os.fspath(self.home.cache), commits=list(commits),
                skipped=[list(window) for window in self.skipped],
            ).to_dict()
            for rank, (local_rank, count) in enumerate(places)
        ]  # fmt: skip
