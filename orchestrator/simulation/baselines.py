"""The schedulers that ours is measured against, as planners of the simulator.

Their rules, found by reproducing the published figures of the real trace (benchmarks/scheduler_goals.py compares them):

- A job on at most as many GPUs as a node has stands on one node, the fullest on which it fits; a larger one on whole empty nodes. Of equal
  nodes the one is taken that has been so for longest.
- FIFO and greedy go by submission. Of EASY see `backfill`: the run times are exact, and one that passes the head is placed first and then
  asked whether the head still has some place at its reserved time.
- LAS and SRTF choose by the number of GPUs in rounds of 60 s; see `rounds`. LAS has one threshold of 18,000 GPU-seconds, or three.
- Longest wait is that until the first start, p99 the value at rank floor(0.99 n) from 0.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from orchestrator.control.scheduler.model import Job, Policy
from orchestrator.errors import ConfigError, nearest
from orchestrator.simulation.backfill import ListScheduler
from orchestrator.simulation.model import Planner, TraceJob
from orchestrator.simulation.rounds import RoundScheduler, by_level, by_remaining

Durations = Mapping[str, float]
"""Run time by job id: what no real scheduler knows, given to the exact ones only."""


@dataclass(frozen=True, kw_only=True)
class Baseline:
    title: str
    make: Callable[[Durations, float], Planner]
    """From the run times and the run time that each preemption costs."""
    preempts: bool = False


LEVEL = (18_000.0,)
LEVELS = (7_200.0, 72_000.0, 720_000.0)
"""GPU-seconds."""


def _least_attained(levels: tuple[float, ...]) -> Planner:
    return RoundScheduler(rank=by_level(levels))


def _submitted(job: Job) -> tuple[float, int, str]:
    return job.submitted_s, len(job.id), job.id  # numbers in their order


BASELINES: Mapping[str, Baseline] = {
    "fifo-strict": Baseline(title="FIFO strict", make=lambda *_: ListScheduler(key=_submitted, overtake=False)),
    "greedy": Baseline(title="FIFO greedy, no reservation", make=lambda *_: ListScheduler(key=_submitted)),
    "easy": Baseline(title="FIFO + EASY, exact durations", make=lambda exact, _: ListScheduler(key=_submitted, durations=exact)),
    "sjf-easy": Baseline(
        title="SJF + EASY, exact durations",
        make=lambda exact, _: ListScheduler(key=lambda job: (exact[job.id], *_submitted(job)), durations=exact),
    ),
    "las": Baseline(title="Tiresias LAS", make=lambda *_: _least_attained(LEVEL), preempts=True),
    "las-3": Baseline(title="LAS, 3 levels", make=lambda *_: _least_attained(LEVELS), preempts=True),
    "srtf": Baseline(
        title="SRTF oracle",
        make=lambda exact, loss_s: RoundScheduler(rank=by_remaining(exact, loss_s)),
        preempts=True,
    ),
}


def baseline(name: str, trace: Iterable[TraceJob], loss_s: float = 62.0) -> tuple[Planner, Policy]:
    """For `simulate`; `loss_s`: as `World.preemption_loss_s`. Raises ConfigError if there is no such baseline."""
    if name not in BASELINES:
        raise ConfigError(f"no baseline {name!r}; there are {', '.join(BASELINES)}.{nearest(name, BASELINES)}")
    found = BASELINES[name]
    return found.make({job.id: job.duration_s for job in trace}, loss_s), Policy(mode="batch")
