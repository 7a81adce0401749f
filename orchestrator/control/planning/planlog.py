"""The scheduler's log: each plan that differs from the one before it, with all that it was made from, so that it can be made again.

A line of JSON for each, in files below `Home.plans`. The first line of a file has all jobs, the others what has changed since: `set` and
`gone` of the jobs that wait and of the runs, and cluster, usage and policy where they are not the same. `hash` is over all inputs.
Lines are written before the plan is carried out. What a killed controller wrote of its last line is passed over.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import IO, Any

from orchestrator.control.planning.inputs import Inputs
from orchestrator.control.scheduler import ClusterView, Demand, Job, Plan, Run, Usage
from orchestrator.control.scheduler.settings import policy_of
from orchestrator.spec import to_dict

MAX_FILE_BYTES = 16_000_000
MAX_BYTES = 256_000_000
"""Of all files. Every controller begins one, however short its life, so that their number bounds nothing."""

Decision = Mapping[str, Any]
"""What a plan decides, JSON-ready; of the order of the jobs that wait, a hash."""


@dataclass(frozen=True, kw_only=True)
class Recorded:
    """One line of the log, with all that it was made from."""

    now: float
    hash: str
    inputs: Inputs
    decision: Decision
    intact: bool
    """The hash is that of the inputs."""


@dataclass
class State:
    """Inputs as the log has them: JSON values, by name or by id."""

    parts: dict[str, str] = field(default_factory=dict)
    queue: dict[str, str] = field(default_factory=dict)
    running: dict[str, str] = field(default_factory=dict)

    def hash(self) -> str:
        digest = hashlib.sha256()
        for group in (self.parts, self.queue, self.running):
            for name in sorted(group):
                digest.update(f"{name} {group[name]}\n".encode())
        return digest.hexdigest()[:32]


class PlanLog:
    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._file: IO[str] | None = None
        self._state = State()
        self._known: dict[str, tuple[Any, str]] = {}
        """(job, run or part, its JSON), by name."""
        self._decided = ""
        self._number = 0

    def record(self, inputs: Inputs, now: float, plan: Plan) -> str:
        """The hash of the inputs if that plan was new and was written, else nothing."""
        decision = decision_of(plan)
        decided = json.dumps({**decision, "next_change_at": None, "reservations": [row[::2] for row in decision["reservations"]]})
        if decided == self._decided:
            return ""
        self._decided = decided
        if self._file is None or self._file.tell() > MAX_FILE_BYTES:
            self._begin()
        state = self._read(inputs)
        found = state.hash()
        line = {"now": now, "hash": found, "changes": _changes(self._state, state), "plan": decision}
        assert self._file is not None, "it was begun"
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()
        self._state = state
        return found

    def close(self) -> None:
        if self._file is not None:
            self._file.close()

    def _begin(self) -> None:
        self.close()
        self._folder.mkdir(parents=True, exist_ok=True)
        self._make_room()
        self._number += 1
        path = self._folder / f"{time.time_ns() // 1000:020d}-{self._number}.jsonl"
        self._file, self._state = path.open("w"), State()

    def _make_room(self) -> None:
        """For another file: the oldest go."""
        held = 0
        for path in sorted(self._folder.glob("*.jsonl"), reverse=True):
            held += path.stat().st_size
            if held > MAX_BYTES - MAX_FILE_BYTES:
                path.unlink(missing_ok=True)

    def _read(self, inputs: Inputs) -> State:
        parts = {"cluster": inputs.cluster, "usage": inputs.usage, "policy": inputs.policy}
        known: dict[str, tuple[Any, str]] = {}

        def text(name: str, value: Any, to_json: Any) -> str:
            before = self._known.get(name)
            known[name] = before if before is not None and before[0] is value else (value, json.dumps(to_json(value)))
            return known[name][1]

        state = State(
            parts={name: text(name, value, _PARTS[name]) for name, value in parts.items()},
            queue={job.id: text(f"queue {job.id}", job, _job_to_dict) for job in inputs.queue},
            running={run.job.id: text(f"run {run.job.id}", run, _run_to_dict) for run in inputs.running},
        )
        self._known = known
        return state


def read_log(folder: Path) -> Iterator[Recorded]:
    """All that is left of it, oldest first."""
    for path in sorted(folder.glob("*.jsonl")):
        state = State()
        for line in path.read_text().splitlines():
            try:
                values = json.loads(line)
            except ValueError:
                break  # the controller was killed as it wrote this
            _apply(state, values["changes"])
            inputs = _inputs(state)
            yield Recorded(
                now=values["now"], hash=values["hash"], inputs=inputs, decision=values["plan"], intact=state.hash() == values["hash"]
            )  # fmt: skip


def decision_of(plan: Plan) -> dict[str, Any]:
    """JSON-ready."""
    order = hashlib.sha256("\n".join(plan.order).encode()).hexdigest()[:16]
    return {
        "starts": [[start.job_id, _list(start.placement)] for start in plan.starts],
        "preempts": [[preempt.job_id, preempt.for_job, preempt.cost] for preempt in plan.preempts],
        "resizes": [[resize.job_id, resize.for_job, _list(resize.placement)] for resize in plan.resizes],
        "reservations": [[kept.job_id, kept.start_s, _list(kept.placement)] for kept in plan.reservations],
        "asks": [[ask.job_id, _list(ask.placement)] for ask in plan.asks],
        "order": order, "short": list(plan.short), "next_change_at": plan.next_change_at,
    }  # fmt: skip


def _changes(before: State, now: State) -> dict[str, Any]:
    found: dict[str, Any] = {
        "parts": {name: json.loads(text) for name, text in now.parts.items() if before.parts.get(name) != text},
    }
    for group in ("queue", "running"):
        old, new = getattr(before, group), getattr(now, group)
        found[group] = {
            "set": {name: json.loads(text) for name, text in new.items() if old.get(name) != text},
            "gone": sorted(set(old) - set(new)),
        }
    return found


def _apply(state: State, changes: Mapping[str, Any]) -> None:
    state.parts |= {name: json.dumps(values) for name, values in changes["parts"].items()}
    for group in ("queue", "running"):
        held = getattr(state, group)
        for name in changes[group]["gone"]:
            del held[name]
        held |= {name: json.dumps(values) for name, values in changes[group]["set"].items()}


def _inputs(state: State) -> Inputs:
    parts = {name: json.loads(text) for name, text in state.parts.items()}
    return Inputs(
        cluster=ClusterView.from_dict(parts["cluster"]), usage=_usage(parts["usage"]), policy=policy_of(parts["policy"]),
        queue=tuple(_job(json.loads(text)) for text in state.queue.values()),
        running=tuple(_run(json.loads(text)) for text in state.running.values()),
    )  # fmt: skip


def _usage_to_dict(usage: Usage) -> dict[str, Any]:
    history = [[tenant, width, list(times)] for (tenant, width), times in sorted(usage.history.items())]
    return {"charged": dict(usage.charged), "charged_at_s": usage.charged_at_s, "history": history}


def _usage(values: Mapping[str, Any]) -> Usage:
    history = {(tenant, width): tuple(times) for tenant, width, times in values["history"]}
    return Usage(charged=values["charged"], charged_at_s=values["charged_at_s"], history=history)


def _job_to_dict(job: Job) -> dict[str, Any]:
    demand = {item.name: getattr(job.demand, item.name) for item in fields(Demand)}
    return {**{item.name: getattr(job, item.name) for item in fields(Job)}, "demand": demand}


def _job(values: Mapping[str, Any]) -> Job:
    sizes = {name: tuple(values[name]) for name in ("smaller", "larger")}
    cleared = tuple((node, workers) for node, workers in values["cleared"])
    return Job(**{**values, **sizes, "cleared": cleared, "demand": Demand.from_dict(values["demand"])})


def _run_to_dict(run: Run) -> dict[str, Any]:
    found = {item.name: getattr(run, item.name) for item in fields(Run)}
    return {**found, "job": _job_to_dict(run.job), "placement": _list(run.placement)}


def _run(values: Mapping[str, Any]) -> Run:
    placement = tuple((node, workers) for node, workers in values["placement"])
    return Run(**{**values, "job": _job(values["job"]), "placement": placement})


def _list(placement: tuple[tuple[str, int], ...]) -> list[list[Any]]:
    return [[node, workers] for node, workers in placement]


_PARTS: dict[str, Any] = {"cluster": ClusterView.to_dict, "usage": _usage_to_dict, "policy": to_dict}
