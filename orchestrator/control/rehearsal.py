"""A rehearsal: two tiny steps of a job, each in a run of its own, by the same code on as few workers as its layout allows.

The first run imports the workload, prepares the data (which the job itself then finds prepared), trains a step and saves it; the second
one restores that and trains another. What they keep, they keep under a job id of their own, so that it can be removed.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from orchestrator.errors import LayoutError
from orchestrator.events import Event, EventKind
from orchestrator.job import EndReason, Job
from orchestrator.layout import Layout, legal
from orchestrator.spec import ChaosSpec, JobSpec

PREFIX = "rehearse-"
STEPS = 2
_BATCHES_EVALUATED = 2


def rehearsal_of(spec: JobSpec, workers: int = 0) -> JobSpec:
    """The spec of its first step. `workers`: of the rehearsal; 0: the fewest that are possible. Raises LayoutError."""
    layout = _layout(spec, workers)
    micro_batches = min(layout.gradient_accumulation_steps, layout.pipeline_parallel_size)
    batch = layout.micro_batch_size * layout.data_parallel_size * micro_batches
    few = _BATCHES_EVALUATED * batch
    training = replace(
        spec.training, max_steps=1, global_batch_size=batch, batch_size_warmup=(), log_interval_steps=1, profile_steps=(),
        eval_interval_steps=0, eval_samples=min(few, spec.training.eval_samples or few), early_stopping_patience=0,
    )  # fmt: skip
    return replace(
        spec, name=f"{PREFIX}{spec.name or spec.workload.name}"[:40].rstrip("-"), training=training,
        resources=replace(spec.resources, num_workers=layout.world_size, min_workers=0),
        optimizer=replace(spec.optimizer, warmup_steps=0),
        checkpoint=replace(spec.checkpoint, interval_steps=1, keep_best=0, keep_last=0),
        recovery=replace(spec.recovery, max_restarts=0),
        scheduling=replace(spec.scheduling, after=()),
        tracking=replace(spec.tracking, registered_model=""),
        chaos=ChaosSpec(),
    )  # fmt: skip


def second_step(spec: JobSpec) -> JobSpec:
    return replace(spec, training=replace(spec.training, max_steps=STEPS))


def _layout(spec: JobSpec, workers: int) -> Layout:
    possible = legal(replace(spec, training=replace(spec.training, batch_size_warmup=())))
    if not workers:
        return possible[0]
    for layout in possible:
        if layout.world_size == workers:
            return layout
    raise LayoutError(f"--rehearse={workers} is not possible: allowed is {', '.join(str(layout.world_size) for layout in possible[:20])}.")


@dataclass(frozen=True)
class Proof:
    """One thing that a rehearsal shows."""

    name: str
    shown: bool
    detail: str = ""

    def to_dict(self) -> dict[str, Any]:
        return {"name": self.name, "shown": self.shown, "detail": self.detail}


def proofs(job: Job, events: Iterable[Event]) -> list[Proof]:
    """What the rehearsal `job` has shown so far, in the order in which a job needs it."""
    told = list(events)
    prepared, started, committed, restored = (
        [event for event in told if event.kind is kind]
        for kind in (EventKind.PREPARED, EventKind.STARTED, EventKind.COMMITTED, EventKind.RESTORED)
    )
    steps = {event.fields.get("step") for event in committed}
    found = [
        Proof("the data are there", bool(prepared), prepared[-1].message if prepared else ""),
        Proof("the workload is imported, its model built, the workers connected", bool(started)),
        Proof("a step is trained and its checkpoint written", 1 in steps),
        Proof("the checkpoint is read back and trained on from", bool(restored) and STEPS in steps),
    ]
    return [*found, tracked(job, told)] if job.spec.tracking.enabled else found


def tracked(job: Job, events: Sequence[Event]) -> Proof:
    """Whether the newest run's figures were delivered: they wait for those of the runs before."""
    begun = max((number for number, event in enumerate(events) if event.kind is EventKind.RESUMED), default=0)
    events = events[begun:]
    refused = [event.message for event in events if event.kind is EventKind.WARNING and "tracking server" in event.message]
    run_id = job.result.mlflow_run_id if job.result else ""
    shown = bool(run_id) and not refused
    return Proof("the tracking server takes its figures", shown, refused[-1] if refused else f"MLflow run {run_id}" if run_id else "")


def advice(job: Job, asked: int) -> str:
    """Of a rehearsal that failed: what a person may try; empty where the message says it all. `asked`: workers of the job itself."""
    reason = job.result.end_reason if job.result else None
    workers = job.spec.resources.num_workers
    if reason in (EndReason.OUT_OF_MEMORY, EndReason.HOST_OUT_OF_MEMORY) and workers < asked:
        return f"It had {workers} of {asked} workers; what is divided among all may fit: --rehearse={asked} rehearses with them."
    if reason is EndReason.COMPLETED and job.spec.tracking.enabled and job.result and not job.result.mlflow_run_id:
        return f"`orchestrator doctor --only tracking tracking.uri={job.spec.tracking.uri}` may say why."
    return ""
