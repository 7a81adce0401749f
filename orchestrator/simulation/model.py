"""What is simulated, and what came of it. Pure data; times in seconds from the beginning of the trace."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from orchestrator.control.scheduler.model import ClusterView, Job, Plan, Policy, Run, Usage
from orchestrator.errors import ConfigError

Planner = Callable[[ClusterView, tuple[Job, ...], tuple[Run, ...], Usage, float, Policy], Plan]
"""`scheduler.plan`, or one of the baselines."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TraceJob:
    """One line of a trace."""

    id: str
    submit_s: float
    gpus: int
    duration_s: float
    """Run time on `gpus` GPUs, without interruption."""
    tenant: str = ""
    user: str = ""
    priority: int = 0
    limit_s: float | None = None
    """Run time that its user allows it."""
    status: str = ""
    """As the source has it; empty: not in the source."""
    sizes: tuple[int, ...] = ()
    """Legal numbers of GPUs, ascending, `gpus` among them; empty: `gpus` only."""

    def __post_init__(self) -> None:
        if self.gpus < 1:
            raise ConfigError(f"job {self.id}: gpus={self.gpus} must be at least 1")
        if not 0 <= self.submit_s < float("inf"):
            raise ConfigError(f"job {self.id}: submit_s={self.submit_s} must be 0 or later")
        if not 0 <= self.duration_s < float("inf"):
            raise ConfigError(f"job {self.id}: duration_s={self.duration_s} must not be negative")
        if self.sizes and (self.gpus not in self.sizes or self.sizes[0] < 1 or list(self.sizes) != sorted(set(self.sizes))):
            raise ConfigError(f"job {self.id}: sizes={self.sizes} must ascend from at least 1, with gpus={self.gpus} among them")


@dataclass(frozen=True, kw_only=True, slots=True)
class Shape:
    """So many equal nodes."""

    nodes: int
    gpus_per_node: int
    speed: float = 1.0
    """Of a GPU, beside the one that the durations of the trace were taken on. A gang runs at the speed of its slowest node."""
    cost_per_gpu_hour: float = 0.0

    def __post_init__(self) -> None:
        for name in ("nodes", "gpus_per_node"):
            if getattr(self, name) < 1:
                raise ConfigError(f"cluster.{name}={getattr(self, name)} must be at least 1")
        if not self.speed > 0:
            raise ConfigError(f"cluster.speed={self.speed} must be above 0")
        if not self.cost_per_gpu_hour >= 0:
            raise ConfigError(f"cluster.cost_per_gpu_hour={self.cost_per_gpu_hour} must not be negative")


@dataclass(frozen=True, kw_only=True)
class World:
    """What happens beside the scheduler."""

    shapes: tuple[Shape, ...]
    preemption_loss_s: float = 62.0
    """Run time that each preemption, resize or loss of a node costs the job: its save and its next start."""
    save_interval_s: float = 0.0
    """A job that dies with its node goes on from its last save; 0: it saves all the time."""
    node_mtbf_s: float = 0.0
    """Mean time between the failures of one node; 0: none fails."""
    node_repair_s: float = 3600.0
    speedup_exponent: float = 0.9
    """An elastic job on n instead of m GPUs runs at (n / m) ** exponent of its speed."""
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.shapes:
            raise ConfigError("the cluster has no nodes")
        for name in ("preemption_loss_s", "save_interval_s", "node_mtbf_s", "node_repair_s"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ConfigError(f"simulation.{name}={getattr(self, name)} must not be negative")
        if not 0 < self.speedup_exponent <= 1:
            raise ConfigError(f"simulation.speedup_exponent={self.speedup_exponent} must be above 0 and at most 1")


@dataclass(frozen=True, kw_only=True, slots=True)
class Segment:
    """A stay of a job in a place."""

    start_s: float
    end_s: float
    nodes: tuple[tuple[str, int], ...]
    """(node, GPUs) of each."""
    end: str
    """`done`, `preempted`, `resized` or `node_lost`."""


@dataclass(frozen=True, kw_only=True)
class JobOutcome:
    job: TraceJob
    first_start_s: float
    end_s: float
    segments: tuple[Segment, ...]
    waited_s: float
    """In all waits together."""
    longest_wait_s: float
    preemptions: int = 0
    lost_gpu_s: float = 0.0
    """Work that was done again, and starts after the first one."""

    @property
    def jct_s(self) -> float:
        """Job completion time: from submission to the end."""
        return self.end_s - self.job.submit_s


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """Of one policy."""

    policy: str
    gpus: int
    jobs: tuple[JobOutcome, ...]
    """In the order of the trace."""
    timeline: tuple[tuple[float, int, int], ...] = ()
    """(time, GPUs in use, jobs that wait) at each change."""
    plans: int = 0
    """Calls of the planner."""
    plan_seconds: tuple[float, ...] = field(default=(), compare=False)
    """What each took, in the order of the calls."""
    wall_s: float = field(default=0.0, compare=False)
