"""How the state of a model is spread over the ranks."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from pathlib import PurePosixPath

from orchestrator.spec.checks import require


class Offload(enum.Enum):
    """Where a part of the state lies while it is not computed with."""

    none = "none"  # on the rank's own device
    cpu = "cpu"
    nvme = "nvme"  # in files on a disk of the node


SIZES = ("tensor_parallel_size", "pipeline_parallel_size", "sequence_parallel_size", "expert_parallel_size")

STAGES = {
    "pipeline_parallel_size": ((0, 1), "a pipeline keeps the gradients of all micro batches"),
}
"""ZeRO stages that a size above 1 works with, and why not with the others."""

APART = {
    ("tensor_parallel_size", "pipeline_parallel_size"): "DeepSpeed finds no tensor-parallel plan in a pipeline's layers",
    ("tensor_parallel_size", "expert_parallel_size"): "state that is dealt out over the ranks of both cannot be saved yet",
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
    """Neighbouring ranks that share each layer's matrices and see the same samples."""
    pipeline_parallel_size: int = 1
    """Stages that the layers are cut into. More than 1 needs ZeRO 0 or 1 and a workload with `layers()`."""
    sequence_parallel_size: int = 1
    """Neighbouring ranks that share each sample's sequence (Ulysses); attention exchanges heads for positions, so it divides both."""
    expert_parallel_size: int = 1
    """Neighbouring data-parallel ranks that share the experts of each mixture of experts; tokens travel to them and back."""
    offload_optimizer: Offload = Offload.none
    """Where the fp32 weights and the optimizer's state lie; then the CPU computes the step. `cpu` needs ZeRO 1, 2 or 3, `nvme` ZeRO 3 and
    `nvme_path`; what is less than 1 MiB per rank stays in memory."""
    offload_parameters: Offload = Offload.none
    """Where parameters lie while their layer does not compute. `cpu` needs ZeRO 3; `nvme` is not offered."""
    nvme_path: str = ""
    """Folder for `offload_optimizer=nvme`, the same on every node, on a local disk. Made if it does not exist; each rank has a folder of
    its own in it while it lives."""
    zero_hpz_partition_size: int = 1
    """ZeRO++: neighbouring ranks, as a rule of one node, that keep a second copy of the 16-bit parameters among them, so that the backward
    pass gathers within the node. More than 1 needs ZeRO 3; it must divide the number of workers."""
    zero_quantized_weights: bool = False
    """ZeRO++: parameters are gathered in 8 bits. Needs ZeRO 3 and GPUs. Changes losses."""
    zero_quantized_gradients: bool = False
    """ZeRO++: gradients are reduced in 4 bits. Needs ZeRO 3 and GPUs. Changes losses."""

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
        self._check_zero_plus_plus()
        self._require_stage("offload_optimizer", self.offload_optimizer, 1, "only state that ZeRO partitions can leave the device")
        self._require_stage("offload_parameters", self.offload_parameters, 3, "only parameters that ZeRO partitions can leave the device")
        self._check_nvme()

    def _check_nvme(self) -> None:
        allowed = "none or cpu, because only what the optimizer keeps can be saved from DeepSpeed's files"
        require(self.offload_parameters is not Offload.nvme, "parallelism.offload_parameters", "nvme", allowed)
        on_disk = self.offload_optimizer is Offload.nvme
        allowed = f"none or cpu at parallelism.zero_stage={self.zero_stage}, because DeepSpeed keeps state in files at ZeRO 3 only"
        require(not on_disk or self.zero_stage == 3, "parallelism.offload_optimizer", "nvme", allowed)
        for size in (*SIZES, "zero_hpz_partition_size"):
            allowed = "1 at parallelism.offload_optimizer=nvme, because the two have not been proven together"
            require(not on_disk or getattr(self, size) == 1, f"parallelism.{size}", getattr(self, size), allowed)
        path, allowed = PurePosixPath(self.nvme_path), "an absolute path without '..', of a folder on a disk of each node"
        ok = path.is_absolute() and ".." not in path.parts if self.nvme_path else not on_disk
        require(ok, "parallelism.nvme_path", self.nvme_path, f"{allowed}, at parallelism.offload_optimizer=nvme")

    def _check_zero_plus_plus(self) -> None:
        hpz = self.zero_hpz_partition_size
        require(hpz >= 1, "parallelism.zero_hpz_partition_size", hpz, "at least 1")
        for name, off in (("zero_hpz_partition_size", 1), ("zero_quantized_weights", False), ("zero_quantized_gradients", False)):
            value = getattr(self, name)
            allowed = f"{off} at parallelism.zero_stage={self.zero_stage}, because ZeRO++ speeds up ZeRO 3 only"
            require(value == off or self.zero_stage == 3, f"parallelism.{name}", value, allowed)
        for size in SIZES:
            allowed = f"1 at parallelism.{size}={getattr(self, size)}, because DeepSpeed counts its neighbours over all ranks"
            require(1 in (hpz, getattr(self, size)), "parallelism.zero_hpz_partition_size", hpz, allowed)

    def _require_stage(self, name: str, value: Offload, least: int, why: str) -> None:
        needed = " or ".join(f"parallelism.zero_stage={stage}" for stage in range(least, 4))
        allowed = f"none at parallelism.zero_stage={self.zero_stage}, because {why}; for cpu choose {needed}"
        require(value is not Offload.cpu or self.zero_stage >= least, f"parallelism.{name}", value.value, allowed)


def _or(stages: tuple[int, ...]) -> str:
    return ", ".join(map(str, stages[:-1])) + f" or {stages[-1]}"
