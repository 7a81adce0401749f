"""What was asked for: `JobSpec` and its parts, frozen and validated.

A spec says what a person wants and nothing of what happened (that is `orchestrator.job`). Each part mirrors one Hydra group
of `conf/`; the attribute path is the command-line flag: `spec.training.max_steps` is `training.max_steps=...`.
"""

from __future__ import annotations

import dataclasses
import enum
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from orchestrator.errors import ConfigError, nearest

Options = Mapping[str, Any]
"""Free-form options of a workload, model or data set: JSON scalars, lists and nested mappings."""


class Precision(enum.Enum):
    """Number format of the forward and backward pass; master weights and optimizer state are always fp32."""

    auto = "auto"  # bf16 where the hardware multiplies it fast, else fp32
    fp32 = "fp32"
    bf16 = "bf16"
    fp16 = "fp16"


class Schedule(enum.Enum):
    constant = "constant"
    linear = "linear"
    cosine = "cosine"
    wsd = "wsd"  # warm-up, stable, decay


class OptimizerName(enum.Enum):
    adamw = "adamw"
    sgd = "sgd"
    lion = "lion"


WHY_NO_OPTIMIZER = {
    "adafactor": "Adafactor keeps sums over the rows and columns of a matrix, and ZeRO cuts a matrix anywhere.",
    "lamb": "LAMB scales each layer by the norm of all its weights, of which a rank holds a part under ZeRO.",
    "muon": "Muon needs whole matrices, and ZeRO cuts a matrix anywhere.",
}
"""Optimizers that people ask for, and why their state cannot go from one ZeRO stage or world size to another."""


def why_no_optimizer(name: str) -> str:
    """A sentence after a space, or nothing."""
    return f" {WHY_NO_OPTIMIZER[name.lower()]}" if name.lower() in WHY_NO_OPTIMIZER else ""


class Offload(enum.Enum):
    """Where a part of the state lies while it is not computed with."""

    none = "none"  # on the rank's own device
    cpu = "cpu"


def _require(ok: bool, flag: str, value: object, allowed: str) -> None:
    if not ok:
        raise ConfigError(f"{flag}={value} is not possible: allowed is {allowed}.")


def _at_least(least: float, group: str, part: Any, *names: str) -> None:
    for name in names:
        value = getattr(part, name)
        _require(least <= value < math.inf, f"{group}.{name}", value, "0 or more" if least == 0 else f"at least {least}")


@dataclass(frozen=True, kw_only=True)
class WorkloadSpec:
    """Model + data recipe + loss + metrics, by name."""

    name: str
    """Name under which runs are grouped."""
    entrypoint: str
    """`module:Class` of a shipped workload, or of one in the working directory of the submitter."""
    options: Options = field(default_factory=dict)
    """Passed through to the workload."""
    code_dir: str = ""
    """Folder put first on the import path of the ranks; set to the submitter's working directory."""

    def __post_init__(self) -> None:
        ok = re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*", self.entrypoint) is not None
        _require(ok, "workload.entrypoint", self.entrypoint, "module:Class, for example my_module:MyWorkload")


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """A model by name; its options are the model's config."""

    name: str
    options: Options = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class DataSpec:
    """A data set by name; its options are the recipe it is prepared by."""

    name: str
    options: Options = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class TrainingSpec:
    """How long and in what portions to train. A step is an optimizer step."""

    max_steps: int
    global_batch_size: int
    """Samples per optimizer step over all ranks; never changed by the number of workers."""
    micro_batch_size: int
    """Samples of one forward pass of one rank."""
    precision: Precision = Precision.auto
    gradient_clipping: float = 1.0
    """Largest global gradient norm; 0 switches clipping off."""
    eval_interval_steps: int = 0
    """Evaluate every so many steps; 0: only before the first and after the last."""
    eval_samples: int = 0
    """Samples of the validation split that an evaluation reads; 0: all."""
    log_interval_steps: int = 1
    """Metrics are read from the device and reported every so many steps; also how fast an order to stop is heard."""
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("max_steps", "global_batch_size", "micro_batch_size", "log_interval_steps"):
            value = getattr(self, name)
            _require(value >= 1, f"training.{name}", value, "a whole number of at least 1")
        for name in ("eval_interval_steps", "eval_samples", "seed", "gradient_clipping"):
            value = getattr(self, name)
            _require(0 <= value < math.inf, f"training.{name}", value, "0 or more")


@dataclass(frozen=True, kw_only=True)
class ResourcesSpec:
    """What each of the job's workers needs; a worker is one rank, one OS process."""

    num_workers: int = 1
    gpus_per_worker: float = 0
    """Whole numbers, or 0 for a job on CPUs."""
    cpus_per_worker: float = 1.0
    threads_per_worker: int = 1
    """Threads of torch's CPU kernels in each rank. Part of what makes results repeatable."""
    max_workers_per_node: int = 0
    """Ranks on one node at most; 0: as many as fit."""

    def __post_init__(self) -> None:
        _require(self.num_workers >= 1, "resources.num_workers", self.num_workers, "a whole number of at least 1")
        _require(self.cpus_per_worker > 0, "resources.cpus_per_worker", self.cpus_per_worker, "more than 0")
        _require(
            self.gpus_per_worker in (0, 1),
            "resources.gpus_per_worker", self.gpus_per_worker, "0 or 1 (a rank drives one GPU)",
        )
        _require(self.threads_per_worker >= 1, "resources.threads_per_worker", self.threads_per_worker, "at least 1")
        _require(self.max_workers_per_node >= 0, "resources.max_workers_per_node", self.max_workers_per_node, "0 or more")


@dataclass(frozen=True, kw_only=True)
class ParallelismSpec:
    """How the model's state is spread over the ranks."""

    zero_stage: int = 1
    """DeepSpeed ZeRO: 0 nothing, 1 optimizer state, 2 and gradients, 3 and parameters are partitioned."""
    tensor_parallel_size: int = 1
    """Neighbouring ranks that share each layer's matrices and see the same samples. More than 1 needs ZeRO 0, 1 or 2."""
    offload_optimizer: Offload = Offload.none
    """Where the fp32 weights and the optimizer's state lie, and where the optimizer computes. `cpu` needs ZeRO 1, 2 or 3."""
    offload_parameters: Offload = Offload.none
    """Where parameters lie while their layer does not compute. `cpu` needs ZeRO 3."""

    def __post_init__(self) -> None:
        _require(self.zero_stage in (0, 1, 2, 3), "parallelism.zero_stage", self.zero_stage, "0, 1, 2 or 3")
        _require(self.tensor_parallel_size >= 1, "parallelism.tensor_parallel_size", self.tensor_parallel_size, "at least 1")
        allowed = "1 at parallelism.zero_stage=3, because state that both divide cannot be saved yet; for more choose ZeRO 0, 1 or 2"
        ok = self.tensor_parallel_size == 1 or self.zero_stage < 3
        _require(ok, "parallelism.tensor_parallel_size", self.tensor_parallel_size, allowed)
        self._require_stage("offload_optimizer", self.offload_optimizer, 1, "only state that ZeRO partitions can leave the device")
        self._require_stage("offload_parameters", self.offload_parameters, 3, "only parameters that ZeRO partitions can leave the device")

    def _require_stage(self, name: str, value: Offload, least: int, why: str) -> None:
        needed = " or ".join(f"parallelism.zero_stage={stage}" for stage in range(least, 4))
        allowed = f"none at parallelism.zero_stage={self.zero_stage}, because {why}; for cpu choose {needed}"
        _require(value is Offload.none or self.zero_stage >= least, f"parallelism.{name}", value.value, allowed)


@dataclass(frozen=True, kw_only=True)
class OptimizerSpec:
    name: OptimizerName = OptimizerName.adamw
    lr: float = 1e-3
    """Learning rate after warm-up."""
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    weight_decay: float = 0.1
    """Decoupled; not applied to parameters of one dimension (norms, biases)."""
    momentum: float = 0.9
    """Of sgd."""
    schedule: Schedule = Schedule.cosine
    warmup_steps: int = 0
    min_lr_ratio: float = 0.1
    """The schedule ends at this share of `lr` at `training.max_steps`."""
    decay_share: float = 0.1
    """Of wsd: the share of `training.max_steps` in which the rate falls, at the end."""

    def __post_init__(self) -> None:
        _require(0 < self.lr < math.inf, "optimizer.lr", self.lr, "more than 0")
        _at_least(0, "optimizer", self, "eps", "weight_decay")
        _require(0 <= self.momentum < 1, "optimizer.momentum", self.momentum, "a number in [0, 1)")
        _require(len(self.betas) == 2 and all(0 <= b < 1 for b in self.betas), "optimizer.betas", self.betas, "two numbers in [0, 1)")
        _require(self.warmup_steps >= 0, "optimizer.warmup_steps", self.warmup_steps, "0 or more")
        _require(0 <= self.min_lr_ratio <= 1, "optimizer.min_lr_ratio", self.min_lr_ratio, "from 0 to 1")
        _require(0 < self.decay_share <= 1, "optimizer.decay_share", self.decay_share, "more than 0, up to 1")


@dataclass(frozen=True, kw_only=True)
class CheckpointSpec:
    interval_steps: int = 50
    """Commit a checkpoint every so many steps, and always after the last."""
    keep_last: int = 3
    """Newest commits that stay in the store; 0: all."""

    def __post_init__(self) -> None:
        _require(self.interval_steps >= 1, "checkpoint.interval_steps", self.interval_steps, "at least 1")
        _require(self.keep_last >= 0, "checkpoint.keep_last", self.keep_last, "0 (all) or more")


@dataclass(frozen=True, kw_only=True)
class StorageSpec:
    """The object store of checkpoints, data sets, journals and logs. Keys come from the environment or the AWS profile, never from here."""

    url: str = ""
    """`s3://bucket/prefix` or `file:///folder`; empty: a folder in the cluster's home."""
    endpoint_url: str = ""
    """Of an S3-compatible server; empty: AWS."""
    region: str = "us-east-1"
    connect_timeout_s: float = 5.0
    read_timeout_s: float = 60.0
    max_attempts: int = 5

    def __post_init__(self) -> None:
        ok = self.url == "" or re.match(r"(s3://[a-z0-9][a-z0-9.-]+|file:///)", self.url) is not None
        _require(ok, "storage.url", self.url, "s3://bucket/prefix, file:///absolute/folder, or empty")
        ok = self.endpoint_url == "" or re.match(r"https?://[^/]", self.endpoint_url) is not None
        _require(ok, "storage.endpoint_url", self.endpoint_url, "http://host:port or https://host:port, or empty")
        for name in ("connect_timeout_s", "read_timeout_s"):
            _require(0 < getattr(self, name) < math.inf, f"storage.{name}", getattr(self, name), "more than 0")
        _at_least(1, "storage", self, "max_attempts")


@dataclass(frozen=True, kw_only=True)
class TrackingSpec:
    """MLflow."""

    enabled: bool = True
    uri: str = ""
    """Any MLflow tracking URI; empty: a SQLite file in the cluster's home."""
    experiment: str = "orchestrator"
    tags: Options = field(default_factory=dict)
    drain_timeout_s: float = 60.0
    """How long the end of a job waits for a tracking server that does not answer. What is left stays in the journal."""

    def __post_init__(self) -> None:
        _at_least(0, "tracking", self, "drain_timeout_s")


@dataclass(frozen=True, kw_only=True)
class RecoverySpec:
    max_restarts: int = 100
    """Restarts of the worker group over the life of the job, whatever the cause."""
    max_restarts_without_progress: int = 3
    """Restarts for the same error without a newly committed step between them; a user's own error gets one at the most."""
    backoff_s: float = 1.0
    """Wait before the second restart without progress; doubles up to one minute."""

    def __post_init__(self) -> None:
        _at_least(0, "recovery", self, "max_restarts", "max_restarts_without_progress", "backoff_s")


@dataclass(frozen=True, kw_only=True)
class ClusterSpec:
    address: str = ""
    """`host:port` of a Ray head whose control plane runs on this machine; empty: a local cluster, started when there is none."""
    home: str = ""
    """Folder of the control plane's state; empty: $ORCHESTRATOR_HOME, else ~/.orchestrator."""
    num_cpus: int = 0
    """CPUs of a local cluster; 0: as many as the machine has."""
    num_gpus: int = -1
    """GPUs of a local cluster; -1: as many as the machine has."""
    idle_timeout_s: float = 30.0
    """A local cluster that was started for a job stops after so long without one."""

    def __post_init__(self) -> None:
        _at_least(0, "cluster", self, "num_cpus", "idle_timeout_s")
        _require(self.num_gpus >= -1, "cluster.num_gpus", self.num_gpus, "-1 (all) or more")


@dataclass(frozen=True, kw_only=True)
class JobSpec:
    """One job. `JobSpec` -> JSON -> `JobSpec` is the identity (`to_dict`, `from_dict`)."""

    workload: WorkloadSpec
    model: ModelSpec
    data: DataSpec
    training: TrainingSpec
    name: str = ""
    """Shown in lists; empty: the workload's name."""
    resources: ResourcesSpec = field(default_factory=ResourcesSpec)
    parallelism: ParallelismSpec = field(default_factory=ParallelismSpec)
    optimizer: OptimizerSpec = field(default_factory=OptimizerSpec)
    checkpoint: CheckpointSpec = field(default_factory=CheckpointSpec)
    storage: StorageSpec = field(default_factory=StorageSpec)
    tracking: TrackingSpec = field(default_factory=TrackingSpec)
    recovery: RecoverySpec = field(default_factory=RecoverySpec)
    cluster: ClusterSpec = field(default_factory=ClusterSpec)

    def __post_init__(self) -> None:
        warmup, steps = self.optimizer.warmup_steps, self.training.max_steps
        _require(warmup < steps, "optimizer.warmup_steps", warmup, f"less than training.max_steps={steps}")
        self._check_clipping()
        if self.optimizer.schedule is Schedule.wsd:
            share = self.optimizer.decay_share
            allowed = f"at most {1 - warmup / steps:.3g}, what optimizer.warmup_steps={warmup} leaves of training.max_steps={steps}"
            _require(warmup + round(share * steps) <= steps, "optimizer.decay_share", share, allowed)
        if self.name:
            ok = re.fullmatch(r"[a-z0-9][a-z0-9-]{0,39}", self.name) is not None
            _require(ok, "name", self.name, "up to 40 of a-z, 0-9 and '-'")

    def _check_clipping(self) -> None:
        """DeepSpeed's optimizer for 16 bits at ZeRO 0 leaves the other tensor ranks' gradients out of the norm that it clips by."""
        parts = self.parallelism
        narrow = self.training.precision in (Precision.bf16, Precision.fp16)
        narrow |= self.training.precision is Precision.auto and self.resources.gpus_per_worker > 0
        allowed = "1 in 16 bits at parallelism.zero_stage=0, where the gradient's norm would be wrong; choose ZeRO 1 or 2, or fp32"
        ok = parts.tensor_parallel_size == 1 or parts.zero_stage > 0 or not narrow
        _require(ok, "parallelism.tensor_parallel_size", parts.tensor_parallel_size, allowed)


def to_dict(spec: Any) -> Any:
    """A spec (or a part) as JSON-ready values: enums by value, tuples as lists."""
    if dataclasses.is_dataclass(spec) and not isinstance(spec, type):
        return {f.name: to_dict(getattr(spec, f.name)) for f in dataclasses.fields(spec)}
    if isinstance(spec, enum.Enum):
        return spec.value
    if isinstance(spec, Mapping):
        return {str(key): to_dict(value) for key, value in spec.items()}
    if isinstance(spec, list | tuple):
        return [to_dict(value) for value in spec]
    return spec


def from_dict(cls: type[Any], values: Mapping[str, Any], path: str = "") -> Any:
    """The inverse of `to_dict`. Raises ConfigError with the flag, the value and the nearest name."""
    hints = get_type_hints(cls)
    names = [f.name for f in dataclasses.fields(cls)]
    for key in values:
        if key not in names:
            raise ConfigError(f"{path}{key} is no setting. Known here: {', '.join(names)}.{nearest(key, names)}")
    for f in dataclasses.fields(cls):
        if f.name not in values and f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING:
            raise ConfigError(f"{path}{f.name} is missing.")
    return cls(**{key: _convert(hints[key], value, f"{path}{key}") for key, value in values.items()})


def _convert(hint: Any, value: Any, flag: str) -> Any:
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        if not isinstance(value, Mapping):
            raise ConfigError(f"{flag}={value!r} is not possible: {flag} is a group of settings.")
        return from_dict(hint, value, f"{flag}.")
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return _convert_enum(hint, value, flag)
    origin = get_origin(hint)
    if origin in (Union, UnionType):
        return None if value is None else _convert(next(a for a in get_args(hint) if a is not type(None)), value, flag)
    if origin is Mapping and not isinstance(value, Mapping):
        raise ConfigError(f"{flag}={value} is not possible: allowed is a mapping such as {{width: 64}}.")
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise ConfigError(f"{flag}={value!r} is not possible: allowed is a list such as [0.9,0.95].")
        return tuple(_convert(get_args(hint)[0], item, flag) for item in value)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if hint in (int, float, str, bool) and type(value) is not hint:
        kind = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}[hint]
        raise ConfigError(f"{flag}={value} is not possible: allowed is {kind}.")
    return value


def _convert_enum(hint: type[enum.Enum], value: Any, flag: str) -> enum.Enum:
    if isinstance(value, hint):
        return value
    allowed = [str(member.value) for member in hint]
    if value not in allowed:
        remark = (why_no_optimizer(str(value)) if hint is OptimizerName else "") or nearest(str(value), allowed)
        raise ConfigError(f"{flag}={value} is not possible: allowed is {', '.join(allowed)}.{remark}")
    return hint(value)
