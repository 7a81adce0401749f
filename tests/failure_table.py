"""Labelled failures (`unit/supervision/failure_cases*.yaml`), made into what a supervisor hears, by the code that runs in a rank."""

from __future__ import annotations

import builtins
import signal
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from orchestrator import errors
from orchestrator.runtime.failure import describe
from orchestrator.spec import DataSpec, JobSpec, ModelSpec, RecoverySpec, ResourcesSpec, TrainingSpec, WorkloadSpec
from orchestrator.supervision.attempt import Attempt
from orchestrator.supervision.diagnosis import Verdict, diagnose, not_started
from orchestrator.supervision.failures import Action, Decision, Fault, decide

FOLDER = Path(__file__).parent / "unit" / "supervision"
WORKLOAD = "/w/model.py"
SITE = "/venv/lib/python3.11/site-packages"
PLACES = {
    "workload": ((f"{SITE}/orchestrator/runtime/train.py", "train"), (WORKLOAD, "loss")),
    "library": ((f"{SITE}/orchestrator/runtime/train.py", "train"), (WORKLOAD, "loss"), (f"{SITE}/torch/nn/functional.py", "linear")),
    "collective": ((f"{SITE}/orchestrator/runtime/train.py", "train"), (f"{SITE}/torch/distributed/distributed_c10d.py", "all_reduce")),
    "orchestrator": ((f"{SITE}/orchestrator/runtime/rank.py", "main"), (f"{SITE}/orchestrator/runtime/resume.py", "restore_newest")),
    "deepspeed": ((f"{SITE}/orchestrator/runtime/engine.py", "step"), (f"{SITE}/deepspeed/runtime/engine.py", "_take_model_step")),
}
"""(file, function) from the outermost on, by where an error is raised."""


@dataclass(frozen=True)
class Case:
    id: str
    values: Mapping[str, Any]

    @property
    def right(self) -> tuple[str, int, str]:
        expected = self.values["expect"]
        return expected["reason"], expected["rank"], expected["do"]

    def verdict(self) -> Verdict:
        starts = [report["start"] for report in self.values["reports"] if "start" in report]
        if starts:
            return not_started(starts[0])
        attempt = Attempt(epoch=1, world_size=16, base_step=0, began_s=0.0)
        for report in self.values["reports"]:
            _hear(attempt, {"rank": 0, "time_s": report.get("at", 1.0), **report})
        return diagnose(attempt.reports)

    def decision(self, verdict: Verdict, before: int | None = None) -> Decision:
        """What follows when it has happened `before` times; None: as often as the case says."""
        asked = self.values.get("asked", 4)
        fault = Fault(
            reason=verdict.reason, remedy=verdict.remedy, fingerprint=verdict.fingerprint, step=12, committed_step=10,
            micro_batch_size=self.values.get("micro_batch_size", asked),
        )  # fmt: skip
        before = self.values.get("before", 0) if before is None else before
        return decide(spec(asked, self.values.get("gpus", 1)), [fault] * (before + 1), before)

    def found(self) -> tuple[str, int, str]:
        verdict = self.verdict()
        return verdict.reason.name, verdict.rank, name_of(self.decision(verdict))


def cases(name: str) -> list[Case]:
    return [Case(values["id"], values) for values in yaml.safe_load((FOLDER / f"{name}.yaml").read_text())]


def spec(micro_batch_size: int, gpus: int = 0, **recovery: Any) -> JobSpec:
    return JobSpec(
        workload=WorkloadSpec(name="w", entrypoint="model:Model"),
        model=ModelSpec(name="m"),
        data=DataSpec(name="d"),
        training=TrainingSpec(max_steps=100, global_batch_size=48, micro_batch_size=micro_batch_size),
        resources=ResourcesSpec(num_workers=4, gpus_per_worker=gpus),
        recovery=RecoverySpec(**recovery),
    )


def name_of(decision: Decision) -> str:
    if decision.action is not Action.RESTART:
        return {Action.FAIL: "stop", Action.HALVE_MICRO_BATCH: "halve"}[decision.action]
    if decision.blames_node:
        return "elsewhere"
    return "retry later" if decision.delay_s else "retry"


def raised(report: Mapping[str, Any]) -> BaseException:
    """The error of a report, as it comes out of the functions of its place."""
    names = {"error": _error(report)}
    call = "raise error"
    for file, function in reversed(PLACES[report.get("in", "workload")]):
        exec(compile(f"def {function}():\n    {call}\n", file, "exec"), names)
        call = f"{function}()"
    try:
        exec(call, names)
    except BaseException as error:  # noqa: BLE001 - a MemoryError and a SystemExit are among them
        return error
    raise AssertionError(report)


def _hear(attempt: Attempt, report: Mapping[str, Any]) -> None:
    if "agent" in report:
        attempt.heard_agent_loss(report["agent"], report["rank"], report["text"], report["time_s"])
    elif "error" in report:
        attempt.heard_error({**report, **describe(raised(report), WORKLOAD)}, 1.0)
    else:
        attempt.heard_exit(
            {
                "rank": report["rank"], "time_s": report["time_s"], "code": report.get("exit", 0),
                "signal": int(signal.Signals[report["signal"]]) if "signal" in report else 0, "greeted": report.get("greeted", True),
                "out_of_memory": report.get("oom_kill", False), "note": report.get("note", ""), "log_tail": report.get("log", ""),
            }, 1.0,
        )  # fmt: skip


def _error(report: Mapping[str, Any]) -> BaseException:
    """An error of the named class: ours, Python's, or one made up that has the name of a library's."""
    module, _, name = report["error"].rpartition(".")
    base = getattr(builtins, report.get("base", name), Exception)
    if module == errors.__name__:
        kind = getattr(errors, name)
    elif not module and "base" not in report:
        kind = base
    else:
        kind = type(name, (_plain(base),), {"__module__": module or "builtins"})
    return kind(report["text"]) if report["text"] else kind()


def _plain(base: type[BaseException]) -> type[BaseException]:
    return ValueError if base is UnicodeDecodeError else base
