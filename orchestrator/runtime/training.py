"""A rank's training under way: what the loop, evaluation, checkpoints and artifacts share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from orchestrator.checkpoints.stage import StagingRing
from orchestrator.data.loader import Dataset
from orchestrator.layout import Layout
from orchestrator.paths import JobKeys
from orchestrator.runtime.cadence import Cadence
from orchestrator.runtime.engine import Engine
from orchestrator.runtime.evaluate import Evaluation
from orchestrator.runtime.guard import Guard
from orchestrator.runtime.link import AgentLink, Phase, ProgressClock
from orchestrator.runtime.metrics import Meter
from orchestrator.runtime.selection import Selection, why_early
from orchestrator.runtime.task import RankTask
from orchestrator.spec import JobSpec
from orchestrator.storage import ObjectStore
from orchestrator.workload import Workload


@dataclass
class Training:
    """Everything the loop touches. `step` steps are done; the next one begins at the global sample `position`."""

    task: RankTask
    spec: JobSpec
    layout: Layout
    workload: Workload
    store: ObjectStore
    dataset: Dataset
    engine: Engine
    link: AgentLink
    clock: ProgressClock
    meter: Meter
    selection: Selection
    staging: StagingRing
    cadence: Cadence
    guard: Guard
    step: int = 0
    position: int = 0
    saved_step: int = 0
    """Newest step that is in the store or on its way there: the one restored from, or staged since."""
    compared_step: int = 0
    """Newest step whose replicas were compared."""
    restored_commit: str = ""
    """Key of the commit restored from; empty once a step was made from it, or if there was none."""
    evaluation_before: Mapping[str, Any] | None = None
    """Metrics before the first step of the job, over all its lives."""
    last_evaluation: Evaluation | None = None

    @property
    def max_steps(self) -> int:
        return self.spec.training.max_steps

    @property
    def ended(self) -> bool:
        """All steps are done, or no more are worth it."""
        return self.step >= self.max_steps or bool(self.why_early)

    @property
    def why_early(self) -> str:
        """Why the job ends before its last step; empty if it does not."""
        return why_early(self.selection, self.spec.training) if self.step < self.max_steps else ""

    def tick(self, step: int, phase: Phase) -> None:
        """The rank now does `phase` of `step`: for who watches for hangs, and for who measures."""
        self.clock.tick(step, phase)
        self.meter.tick(phase)


def put_artifact(run: Training, name: str, content: bytes) -> None:
    """A file for people into the store, from where it goes to the tracking server."""
    run.tick(run.step, Phase.END)
    run.store.put(JobKeys(run.task.job_id).artifact(name), content)
    run.link.send("artifact", name=name)
