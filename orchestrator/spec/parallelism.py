"""How the state of a model is spread over the ranks."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from orchestrator.spec.checks import require


class Offload(enum.Enum):
    """Where a part of the state lies while it is not computed with."""

    none = "none"  # on the rank's own device
    cpu = "cpu"


SIZES = ("tensor_parallel_size", "pipeline_parallel_size", "sequence_parallel_size", "expert_parallel_size")

STAGES = {
    "tensor_parallel_size": ((0, 1, 2), "state that both divide cannot be saved yet"),
    "pipeline_parallel_size": ((0, 1), "a pipeline keeps the gradients of all micro batches"),
}
"""ZeRO stages that a size above 1 works with, and why not with the others."""

APART = {
    ("tensor_parallel_size", "pipeline_parallel_size"): "DeepSpeed finds no tensor-parallel plan in a pipeline's layers",
    ("tensor_parallel_size", "expert_parallel_size"): "DeepSpeed deals experts out over the ranks of both, and such state cannot be saved yet",
    ("pipeline_parallel_size", "sequence_parallel_size"): "a pipeline has no model whose attention could be exchanged",
    ("pipeline_parallel_size", "expert_parallel_size"): "a pipeline's last stage does not see the experts' balancing loss",
    ("sequence_parallel_size", "expert_parallel_size"): "a rank would balance the experts over its part of a sequence alone",
}
"""Sizes of which one must be 1, and why."""


@dataclass(frozen=True, kw_only=True)
class ParallelismSpec:
    """How the model's state is spread over the ranks."""

    zero_stage: int = 1
    """DeepSpeed ZeRO: 0 nothing, 1 optimizer state, 2 and gradients, 3 and parameters are partitioned."""
    tensor_parallel_size: int = 1
    """Neighbouring ranks that share each layer's matrices and see the same samples. More than 1 needs ZeRO 0, 1 or 2."""
    pipeline_parallel_size: int = 1
    """Stages that the layers are cut into. More than 1 needs ZeRO 0 or 1 and a workload with `layers()`."""
    sequence_parallel_size: int = 1
    """Neighbouring ranks that share each sample's sequence (Ulysses); attention exchanges heads for positions, so it divides both."""
    expert_parallel_size: int = 1
    """Neighbouring data-parallel ranks that share the experts of each mixture of experts; tokens travel to them and back."""
    offload_optimizer: Offload = Offload.none
    """Where the fp32 weights and the optimizer's state lie, and where the optimizer computes. `cpu` needs ZeRO 1, 2 or 3."""
    offload_parameters: Offload = Offload.none
    """Where parameters lie while their layer does not compute. `cpu` needs ZeRO 3."""

    def __post_init__(self) -> None:
        require(self.zero_stage in (0, 1, 2, 3), "parallelism.zero_stage", self.zero_stage, "0, 1, 2 or 3")
        for name in SIZES:
            require(getattr(self, name) >= 1, f"parallelism.{name}", getattr(self, name), "at least 1")
        for name, (stages, why) in STAGES.items():
            allowed = f"1 at parallelism.zero_stage={self.zero_stage}, because {why}; for more choose ZeRO {_or(stages)}"
            require(getattr(self, name) == 1 or self.zero_stage in stages, f"parallelism.{name}", getattr(self, name), allowed)
        for (name, other), why in APART.items():
            allowed = f"1 at parallelism.{other}={getattr(self, other)}, because {why}"
            require(1 in (getattr(self, name), getattr(self, other)), f"parallelism.{name}", getattr(self, name), allowed)
        self._require_stage("offload_optimizer", self.offload_optimizer, 1, "only state that ZeRO partitions can leave the device")
        self._require_stage("offload_parameters", self.offload_parameters, 3, "only parameters that ZeRO partitions can leave the device")

    def _require_stage(self, name: str, value: Offload, least: int, why: str) -> None:
        needed = " or ".join(f"parallelism.zero_stage={stage}" for stage in range(least, 4))
        allowed = f"none at parallelism.zero_stage={self.zero_stage}, because {why}; for cpu choose {needed}"
        require(value is Offload.none or self.zero_stage >= least, f"parallelism.{name}", value.value, allowed)


def _or(stages: tuple[int, ...]) -> str:
    return ", ".join(map(str, stages[:-1])) + f" or {stages[-1]}"
