"""The schedulers that ours is measured against, as planners of the simulator."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from orchestrator.control.scheduler.model import Job, Policy
from orchestrator.errors import ConfigError, nearest
from orchestrator.simulation.backfill import ListScheduler
from orchestrator.simulation.model import Planner, TraceJob

Durations = Mapping[str, float]
"""Run time by job id: what no real scheduler knows, given to the exact ones only."""


@dataclass(frozen=True, kw_only=True)
class Baseline:
    title: str
    make: Callable[[Durations], Planner]
    mode: str = "batch"
    """Of the policy that it is simulated with: `preemptive` plans in rounds."""


def _submitted(job: Job) -> tuple[float, int, str]:
    return job.submitted_s, len(job.id), job.id  # numbers in their order


BASELINES: Mapping[str, Baseline] = {
    "fifo-strict": Baseline(title="FIFO strict", make=lambda _: ListScheduler(key=_submitted, overtake=False)),
    "greedy": Baseline(title="FIFO greedy, no reservation", make=lambda _: ListScheduler(key=_submitted)),
    "easy": Baseline(title="FIFO + EASY, exact durations", make=lambda exact: ListScheduler(key=_submitted, durations=exact)),
    "sjf-easy": Baseline(
        title="SJF + EASY, exact durations",
        make=lambda exact: ListScheduler(key=lambda job: (exact[job.id], *_submitted(job)), durations=exact),
    ),
}


def baseline(name: str, trace: Iterable[TraceJob]) -> tuple[Planner, Policy]:
    """For `simulate`. Raises ConfigError if there is no such baseline."""
    if name not in BASELINES:
        raise ConfigError(f"no baseline {name!r}; there are {', '.join(BASELINES)}.{nearest(name, BASELINES)}")
    found = BASELINES[name]
    return found.make({job.id: job.duration_s for job in trace}), Policy(mode=found.mode)
