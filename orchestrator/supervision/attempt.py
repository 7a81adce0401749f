"""One life of the worker group, as far as its ranks have told: bookkeeping without side effects."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from orchestrator.supervision.diagnosis import AgentLoss, ErrorReport, RankExit, Report, Verdict, has_cause

ECHO_WAIT_S = 2.0
"""How long the cause is waited for when a rank says only that another one is gone."""
LEAVE_LIMIT_S = 30.0
"""How long ranks may take to leave after all have said that they are done."""
START_LIMIT_S = 300.0
"""How long a rank may take from its fork to its first word."""


@dataclass(frozen=True)
class SavedCheckpoint:
    """All writers' parts of it are in the store."""

    step: int
    prefix: str
    job_scalars: Mapping[str, Any]
    cost: Mapping[str, float] = field(default_factory=dict)
    """num_bytes over all writers, upload_s and stage_s of the slowest."""
    stored_s: float = 0.0
    """When the last byte was in the store, by the clock of the node that sent it."""


@dataclass
class Staged:
    """State of one step in host memory, on its way to the store."""

    step: int
    writers: set[int] = field(default_factory=set)
    num_bytes: int = 0
    """Of all writers together."""
    stage_s: float = 0.0
    """Of the slowest."""
    since_s: float = 0.0
    """When the last of them had staged it."""


@dataclass
class Attempt:
    epoch: int
    world_size: int
    base_step: int
    """The step that it goes on from; 0: from the start."""
    began_s: float
    commits: Sequence[str] = ()
    """Keys of those that its ranks may go on from, the newest first."""
    reports: list[Report] = field(default_factory=list)
    greeted: set[int] = field(default_factory=set)
    hosts: dict[int, str] = field(default_factory=dict)
    """rank -> name of its machine."""
    gpus: dict[int, str] = field(default_factory=dict)
    """rank -> identity of its GPU."""
    done: dict[int, tuple[int, bool]] = field(default_factory=dict)
    """rank -> (step, stopped)."""
    why: str = ""
    """Why they are done before the last step, if nobody asked them to stop."""
    training: bool = False
    """It has reached its first step: there may be something to save."""
    newest_staged: Staged | None = None
    """The newest that is, or was, whole in host memory."""
    exited: set[int] = field(default_factory=set)
    still: set[int] = field(default_factory=set)
    """Bundles none of whose ranks moves."""
    hang: Verdict | None = None
    suspects: set[str] = field(default_factory=set)
    """Keys of commits that a rank has found damaged."""
    _staged: dict[tuple[int, str], Staged] = field(default_factory=dict)
    """(step, key prefix) -> what is on its way to the store."""
    _saved: dict[tuple[int, str], dict[int, Mapping[str, Any]]] = field(default_factory=dict)
    _committed: set[tuple[int, str]] = field(default_factory=set)
    """What was whole already: an uploader that is killed has told of it, and the next one tells of it again."""
    _first_report_s: float | None = None
    _all_done_s: float | None = None

    def heard(self, message: Mapping[str, Any]) -> None:
        """Whatever a rank says; where it runs, if it says that."""
        rank = message["rank"]
        self.greeted.add(rank)
        for told, known in ((message.get("host"), self.hosts), (message.get("gpu"), self.gpus)):
            if told:
                known[rank] = told

    def heard_error(self, message: Mapping[str, Any], now: float) -> None:
        """From a rank, or from an uploader in its name, which says of which checkpoint: that one does not come any more."""
        if "checkpoint" in message:
            self._staged.pop((message["step"], message["checkpoint"]), None)
        self._add(
            ErrorReport(
                rank=message["rank"], time_s=message["time_s"], end_reason=message.get("end_reason", ""),
                remedy=message.get("remedy", ""), message=message.get("message", ""), traceback=message.get("traceback", ""),
                fingerprint=message.get("fingerprint", ""), echo=bool(message.get("echo", False)),
                window=tuple(message["window"]) if message.get("window") else None,
            ), now,
        )  # fmt: skip

    def heard_exit(self, message: Mapping[str, Any], now: float) -> None:
        """A rank that has said it is done may leave as it likes."""
        rank = message["rank"]
        self.exited.add(rank)
        if rank in self.done:
            return
        known = {name: message[name] for name in ("code", "signal", "greeted", "out_of_memory", "note", "log_tail") if name in message}
        self._add(RankExit(rank=rank, time_s=message["time_s"], **known), now)

    def heard_agent_loss(self, bundle: int, first_rank: int, why: str, now: float) -> None:
        self._add(AgentLoss(bundle=bundle, first_rank=first_rank, time_s=now, message=why), now)

    def heard_done(self, message: Mapping[str, Any], now: float) -> None:
        self.done[message["rank"]] = (message["step"], bool(message["stopped"]))
        self.why = message.get("why", "")
        if len(self.done) == self.world_size:
            self._all_done_s = now

    def heard_staged(self, message: Mapping[str, Any], now: float) -> None:
        staged = self._staged.setdefault((message["step"], message["checkpoint"]), Staged(message["step"]))
        staged.writers.add(message["writer"])
        staged.num_bytes += message.get("num_bytes", 0)
        staged.stage_s = max(staged.stage_s, message.get("stage_s", 0.0))
        if len(staged.writers) == self.world_size:
            staged.since_s = now
            self.newest_staged = staged

    def on_their_way(self) -> list[Staged]:
        """What is whole in host memory, and not yet in the store, by step."""
        whole = [staged for staged in self._staged.values() if len(staged.writers) == self.world_size]
        return sorted(whole, key=lambda staged: staged.step)

    def unsaved(self) -> dict[tuple[int, str], set[int]]:
        """Of the same, oldest first: (step, key prefix) -> writers whose part is not known to be in the store."""
        whole = sorted(key for key, staged in self._staged.items() if len(staged.writers) == self.world_size)
        return {key: self._staged[key].writers - self._saved.get(key, {}).keys() for key in whole}

    def heard_saved(self, message: Mapping[str, Any]) -> SavedCheckpoint | None:
        """The checkpoint, once, when this was the last of its writers."""
        step, prefix = message["step"], message["checkpoint"]
        if (step, prefix) in self._committed:
            return None
        writers = self._saved.setdefault((step, prefix), {})
        writers[message["writer"]] = message
        if len(writers) < self.world_size:
            return None
        del self._saved[step, prefix]
        self._committed.add((step, prefix))
        staged = self._staged.pop((step, prefix), None)
        stored_s = max(part.get("time_s", 0.0) for part in writers.values())
        cost = {**_cost(list(writers.values())), "stage_s": staged.stage_s if staged else 0.0}
        return SavedCheckpoint(step, prefix, writers[0].get("job_scalars", {}), cost, stored_s)

    def restores(self) -> str | None:
        """Key of the commit that its ranks go on from, or try to; None if they begin anew."""
        return next((key for key in self.commits if key not in self.suspects), None)

    def completed(self, now: float) -> bool:
        """All ranks are done, and have left or had their time to."""
        if self._all_done_s is None:
            return False
        return len(self.exited) == self.world_size or now - self._all_done_s > LEAVE_LIMIT_S

    def failed(self, now: float) -> bool:
        """Something has failed, and waiting would not tell more about why."""
        if self._all_done_s is not None:
            return False
        if self._first_report_s is None:
            return self.silent(now)
        return has_cause(self.reports) or len(self.exited) == self.world_size or now - self._first_report_s > ECHO_WAIT_S

    def silent(self, now: float) -> bool:
        return len(self.greeted) < self.world_size and now - self.began_s > START_LIMIT_S

    def patience_s(self) -> float:
        """How long it may be until there is news without a message."""
        return 1.0 if self._first_report_s is None and self._all_done_s is None else 0.05

    def _add(self, report: Report, now: float) -> None:
        self.reports.append(report)
        self._first_report_s = now if self._first_report_s is None else self._first_report_s


def _cost(saved: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    slowest = max(message.get("upload_s", 0.0) for message in saved)
    return {"num_bytes": sum(message.get("num_bytes", 0) for message in saved), "upload_s": slowest}
