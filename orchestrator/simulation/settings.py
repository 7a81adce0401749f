"""What a simulation assumes: the cluster, what happens on it, and the policy. `conf/simulate.yaml` says what each setting means."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

from orchestrator.control.scheduler.model import Policy
from orchestrator.control.scheduler.settings import policy_of
from orchestrator.errors import ConfigError
from orchestrator.simulation.model import Shape, World
from orchestrator.spec import from_dict


@dataclass(frozen=True, kw_only=True)
class ClusterSettings:
    nodes: int = 0
    """Equal ones; 0: those of `shapes`."""
    gpus_per_node: int = 8
    speed: float = 1.0
    cost_per_gpu_hour: float = 0.0
    shapes: tuple[Shape, ...] = ()
    """Nodes of several kinds, instead of the four above."""

    def __post_init__(self) -> None:
        if self.nodes and self.shapes:
            raise ConfigError(f"cluster.nodes={self.nodes} and cluster.shapes exclude each other: give one of them.")

    @property
    def all_shapes(self) -> tuple[Shape, ...]:
        """Empty: the cluster is not said. Raises ConfigError."""
        if not self.nodes:
            return self.shapes
        return (Shape(**{item.name: getattr(self, item.name) for item in fields(Shape)}),)


@dataclass(frozen=True, kw_only=True)
class WorldSettings:
    """As in `World`, whose defaults these are."""

    preemption_loss_s: float = World.preemption_loss_s
    save_interval_s: float = World.save_interval_s
    node_mtbf_s: float = World.node_mtbf_s
    node_repair_s: float = World.node_repair_s
    speedup_exponent: float = World.speedup_exponent
    seed: int = World.seed


@dataclass(frozen=True, kw_only=True)
class SimulationSettings:
    cluster: ClusterSettings = field(default_factory=ClusterSettings)
    simulation: WorldSettings = field(default_factory=WorldSettings)
    scheduler: Policy = field(default_factory=Policy)

    def world(self, shapes: tuple[Shape, ...]) -> World:
        """On a cluster of these nodes. Raises ConfigError."""
        return World(shapes=shapes, **vars(self.simulation))


def settings_of(values: Mapping[str, Any]) -> SimulationSettings:
    """Raises ConfigError with the setting, its value and the nearest valid name."""
    rest = {key: value for key, value in values.items() if key != "scheduler"}
    found: SimulationSettings = from_dict(SimulationSettings, rest)
    return replace(found, scheduler=policy_of(values["scheduler"]))
