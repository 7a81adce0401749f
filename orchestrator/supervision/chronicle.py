"""What ranks and supervisor tell: on the board for who looks now, in the journal for ever, and from there to MLflow."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from orchestrator.checkpoints.commit import CommitRef
from orchestrator.events import EventKind
from orchestrator.job import EndReason, JobState
from orchestrator.spec import ResourcesSpec
from orchestrator.supervision.failures import Fault
from orchestrator.supervision.status_board import StatusBoard
from orchestrator.supervision.tracking_child import TrackingChild
from orchestrator.tracking.journal import Journal

Message = Mapping[str, Any]

log = logging.getLogger("orchestrator.supervisor")


class Chronicle:
    def __init__(self, run: int, board: StatusBoard, journal: Journal, tracking: TrackingChild) -> None:
        self._run = run
        self.board = board
        self.journal = journal
        self.tracking = tracking
        self._evaluated: dict[str, float] = {}
        self._best: CommitRef | None = None

    def tell(self, kind: EventKind, message: str, **fields: Any) -> None:
        """An event. `fields` are JSON values."""
        self.board.event(kind, message, **fields)
        self.journal.append("event", event=kind.value, message=message, run=self._run, **fields)
        log.info("%s: %s", kind.value, message)

    def workers(self, workers: int, resources: ResourcesSpec) -> None:
        """How many an attempt has, of a job that may have fewer than it asks for."""
        if resources.min_workers:
            self.journal.append("tags", values={"workers": f"{workers} of {resources.num_workers}"})

    def hear(self, message: Message) -> None:
        """What a rank tells for people and for the journal. A type that only a newer rank knows is passed over."""
        match message["type"]:
            case "phase":
                self.board.show(phase=message["text"])
            case "prepared":
                self.tell(EventKind.PREPARED, f"data set {message['dataset']}", dataset=message["dataset"])
            case "metrics":
                self._trained(message)
            case "evaluated":
                self._evaluation(message)
            case "warning":
                self.tell(EventKind.WARNING, message["message"])
            case "chaos":
                self.tell(EventKind.CHAOS, message["text"], fault=message["fault"], step=message["step"], rank=message["rank"])
            case "artifact":
                self.journal.append("artifact", name=message["name"])

    def kept(self, name: str, in_store: bool) -> None:
        """An artifact that the supervisor wrote."""
        if in_store:
            self.journal.append("artifact", name=name)

    def restored(self, message: Message) -> None:
        step = message["step"]
        self.board.show(step=step)
        self.tell(EventKind.RESTORED, f"goes on from step {step}", step=step, commit=message.get("commit", ""))

    def started(self, message: Message) -> None:
        first = message["first_step"]
        self.tell(EventKind.STARTED, f"training from step {first}", first_step=first)
        self.board.forget_pace()
        if self.board.state is not JobState.DRAINING:
            self.board.move(JobState.RUNNING, "training")

    def committed(self, commit: CommitRef, cost: Mapping[str, float]) -> None:
        """The newest checkpoint is now `commit`; the tracking server gets a link to it."""
        self.tell(EventKind.COMMITTED, f"step {commit.step}", step=commit.step, commit=commit.key, epoch=commit.epoch, **cost)
        self.journal.append("tags", values={"checkpoint.step": commit.step, "checkpoint.newest": commit.prefix})

    def best(self, commit: CommitRef | None) -> None:
        """The best checkpoint is now `commit`; None: there is none."""
        if commit == self._best:
            return
        self._best = commit
        self.board.show(best_step=commit and commit.step, best_value=commit and commit.value)
        if commit is not None:
            figures = {"best.step": commit.step, f"best.{commit.metric}": commit.value}
            self.journal.append("tags", values={**figures, "best.checkpoint": commit.prefix})

    def rewind(self, step: int) -> None:
        self.journal.rewind(step)

    def records(self) -> Iterator[Message]:
        yield from self.journal.records(0)

    def figures(self) -> dict[str, float]:
        """The newest training loss and the newest evaluation, for the result."""
        loss = self.board.progress.loss
        known = {} if loss is None else {"loss": loss}
        return known | {name if name.startswith("val_") else f"val_{name}": float(value) for name, value in self._evaluated.items()}

    def _trained(self, message: Message) -> None:
        self.journal.append("metrics", step=message["step"], values=message["values"], time_s=message["time_s"])
        self.board.trained(message["step"], message["values"], message["time_s"])
        self.tracking.ensure()
        if not self.board.progress.mlflow_run_id and (run_id := self.tracking.run_id):
            self.board.show(mlflow_run_id=run_id)

    def _evaluation(self, message: Message) -> None:
        step, values = message["step"], message["values"]
        self._evaluated = dict(values)
        self.journal.append("evaluated", step=step, values=values, time_s=message["time_s"])
        loss = values.get("loss", values.get("val_loss"))
        self.board.show(val_loss=loss)
        self.tell(EventKind.EVALUATED, f"step {step}" + (f": validation loss {loss:.4f}" if loss is not None else ""), step=step)
        self.tracking.ensure()


@dataclass
class Past:
    """What counts against the budgets of a run from earlier lives of its supervisor, and from the runs before it that it goes on from."""

    faults: list[Fault] = field(default_factory=list)
    """Those that were answered by a restart."""
    restarts: int = 0
    preemptions: int = 0
    micro_batch_size: int = 0
    """To which it was lowered; 0: it is as asked for."""
    skipped: list[tuple[int, int]] = field(default_factory=list)
    """Samples that the job passes over, whatever has ended since: (from, to), global positions."""
    drained: set[str] = field(default_factory=set)
    """Nodes that the job has left because a rank on them was a straggler."""


def past(records: Iterable[Message], run: int) -> Past:
    """A run that was preempted or resized goes on in the next one; one that the user resumes begins with nothing against it."""
    found, of_run, ended = Past(), 0, ""
    for record in (record for record in records if record["kind"] == "event"):
        if record["run"] != of_run:
            found, of_run, ended = _next_run(found, ended), record["run"], ""
        match EventKind(record["event"]):
            case EventKind.RESTARTED:
                found.faults.append(Fault.from_dict(record["fault"]))
                found.restarts += 1
                found.micro_batch_size = record.get("micro_batch_size", found.micro_batch_size)
                if "skipped" in record:
                    first, end = record["skipped"]
                    found.skipped.append((first, end))
            case EventKind.SUPERVISOR_LOST:
                found.restarts += 1
            case EventKind.STRAGGLER if record.get("drains"):
                found.drained.add(record["node"])
            case EventKind.ENDED:
                ended = record["reason"]
    return found if of_run == run else _next_run(found, ended)


def _next_run(found: Past, ended: str) -> Past:
    """`ended`: the end reason's name of the run before."""
    if ended == EndReason.RESIZED.name:
        return found
    return replace(found, preemptions=found.preemptions + 1) if ended == EndReason.PREEMPTED.name else Past(skipped=found.skipped)
