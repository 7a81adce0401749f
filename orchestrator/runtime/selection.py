"""Which evaluations were the best, and whether training still gets better. Pure: no torch, no clock; the state is part of each checkpoint,
so a job that was killed stops at the step at which a calm one stops."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from orchestrator.errors import ConfigError, nearest
from orchestrator.spec import JobSpec, TrainingSpec


@dataclass(frozen=True, kw_only=True)
class Selection:
    """The evaluations of the steps so far, judged by `training.best_metric`. That before the first step does not count."""

    metric: str
    maximize: bool
    top: tuple[tuple[float, int], ...] = ()
    """(figure, step) of the best, best first; the earlier of equal ones. As many as `checkpoint.keep_best`, at least one."""
    mark: tuple[float, int] | None = None
    """(figure, step) of the last improvement by more than `training.early_stopping_min_delta`."""
    waited: int = 0
    """Evaluations since then."""

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    def has(self, step: int) -> bool:
        """Whether the evaluation of `step` is among the best."""
        return any(found == step for _, found in self.top)


def selection_of(spec: JobSpec, saved: Mapping[str, Any] | None = None) -> Selection:
    """At the start of a job, or as `saved` in a checkpoint. Judged by another metric now, it begins anew."""
    training = spec.training
    fresh = Selection(metric=training.best_metric, maximize=training.best_maximize)
    if saved is None or (saved["metric"], saved["maximize"]) != (fresh.metric, fresh.maximize):
        return fresh
    top = tuple((float(value), int(step)) for value, step in saved["top"])
    mark = saved["mark"] and (float(saved["mark"][0]), int(saved["mark"][1]))
    return dataclasses.replace(fresh, top=top, mark=mark, waited=int(saved["waited"]))


def figure(values: Mapping[str, float], metric: str) -> float | None:
    """The metric among the figures of an evaluation; None if it is no number. Raises ConfigError if the workload does not report it."""
    if metric not in values:
        reported = ", ".join(sorted(values))
        raise ConfigError(f"training.best_metric={metric} is not possible: this workload reports {reported}.{nearest(metric, values)}")
    return values[metric] if math.isfinite(values[metric]) else None


def judged(before: Selection, spec: JobSpec, step: int, value: float | None) -> Selection:
    """With the evaluation of `step`. What is no number is never an improvement."""
    if value is None:
        return dataclasses.replace(before, waited=before.waited + 1)
    sign = 1 if before.maximize else -1
    best_first = sorted([*before.top, (value, step)], key=lambda item: (-sign * item[0], item[1]))
    top = tuple(best_first[: max(1, spec.checkpoint.keep_best)])
    better = before.mark is None or sign * (value - before.mark[0]) > spec.training.early_stopping_min_delta
    mark, waited = ((value, step), 0) if better else (before.mark, before.waited + 1)
    return dataclasses.replace(before, top=top, mark=mark, waited=waited)


def why_early(selection: Selection, spec: TrainingSpec) -> str:
    """Why training ends here, in words; empty as long as it goes on."""
    if not spec.early_stopping_patience or selection.waited < spec.early_stopping_patience:
        return ""
    least = f" by more than {spec.early_stopping_min_delta:g}" if spec.early_stopping_min_delta else ""
    since = f"{selection.mark[0]:.6g} of step {selection.mark[1]}" if selection.mark else "anything"
    return f"stopped early: {selection.metric} was not better than {since}{least} in {selection.waited} evaluations"
