"""`JobSpec`: one job, whole."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from orchestrator.spec.chaos import ChaosSpec, check_chaos
from orchestrator.spec.checks import Options, require
from orchestrator.spec.environment import EnvironmentSpec
from orchestrator.spec.guard import REPLICA_CHECK_STEPS, GuardSpec
from orchestrator.spec.operations import CheckpointSpec, ClusterSpec, RecoverySpec, ResourcesSpec, StorageSpec, TrackingSpec
from orchestrator.spec.parallelism import SIZES, Offload, ParallelismSpec
from orchestrator.spec.scheduling import SchedulingSpec
from orchestrator.spec.training import ActivationCheckpointing, Float8, OptimizerName, OptimizerSpec, Precision, Schedule, TrainingSpec


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
    package: str = ""
    """Hash of the packaged working directory, which then takes the place of `code_dir`; set at submission if the workload stands in it."""

    def __post_init__(self) -> None:
        ok = re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*", self.entrypoint) is not None
        require(ok, "workload.entrypoint", self.entrypoint, "module:Class, for example my_module:MyWorkload")
        ok = re.fullmatch(r"([0-9a-f]{64})?", self.package) is not None
        require(ok, "workload.package", self.package, "a hash of 64 hexadecimal digits, or empty; it is set at submission")


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
class JobSpec:
    """One job. `JobSpec` -> JSON -> `JobSpec` is the identity (`to_dict`, `from_dict`)."""

    workload: WorkloadSpec
    model: ModelSpec
    data: DataSpec
    training: TrainingSpec
    name: str = ""
    """Shown in lists; empty: the workload's name."""
    environment: EnvironmentSpec = field(default_factory=EnvironmentSpec)
    resources: ResourcesSpec = field(default_factory=ResourcesSpec)
    scheduling: SchedulingSpec = field(default_factory=SchedulingSpec)
    parallelism: ParallelismSpec = field(default_factory=ParallelismSpec)
    optimizer: OptimizerSpec = field(default_factory=OptimizerSpec)
    checkpoint: CheckpointSpec = field(default_factory=CheckpointSpec)
    storage: StorageSpec = field(default_factory=StorageSpec)
    tracking: TrackingSpec = field(default_factory=TrackingSpec)
    recovery: RecoverySpec = field(default_factory=RecoverySpec)
    guard: GuardSpec = field(default_factory=GuardSpec)
    chaos: ChaosSpec = field(default_factory=ChaosSpec)
    cluster: ClusterSpec = field(default_factory=ClusterSpec)

    def __post_init__(self) -> None:
        warmup, steps = self.optimizer.warmup_steps, self.training.max_steps
        require(warmup < steps, "optimizer.warmup_steps", warmup, f"less than training.max_steps={steps}")
        self._check_clipping()
        why = "0 at training.eval_interval_steps=0, which evaluates only at the end; evaluate every so many steps"
        ok = self.checkpoint.keep_best == 0 or self.training.eval_interval_steps > 0
        require(ok, "checkpoint.keep_best", self.checkpoint.keep_best, why)
        self._check_sequences()
        self._check_recomputation()
        self._check_whole_matrices()
        self._check_quantized()
        self._check_together()
        allowed = "0 at parallelism.offload_optimizer=nvme, because the average would lie in memory beside what is to leave it"
        on_disk = self.parallelism.offload_optimizer is Offload.nvme
        require(not on_disk or self.training.ema_decay == 0, "training.ema_decay", self.training.ema_decay, allowed)
        self._check_float8()
        self._check_replicas()
        check_chaos(self)
        if self.optimizer.schedule is Schedule.wsd:
            share = self.optimizer.decay_share
            allowed = f"at most {1 - warmup / steps:.3g}, what optimizer.warmup_steps={warmup} leaves of training.max_steps={steps}"
            require(warmup + round(share * steps) <= steps, "optimizer.decay_share", share, allowed)
        if self.name:
            ok = re.fullmatch(r"[a-z0-9][a-z0-9-]{0,39}", self.name) is not None
            require(ok, "name", self.name, "up to 40 of a-z, 0-9 and '-'")

    def _check_together(self) -> None:
        """What is not proven where ranks share a model is refused there."""
        for name in SIZES:
            size, compiled = getattr(self.parallelism, name), self.training.compile
            allowed = f"false at parallelism.{name}={size}, because the two have not been proven together"
            require(size == 1 or not compiled, "training.compile", str(compiled).lower(), allowed)
        stages, growing = self.parallelism.pipeline_parallel_size, [list(stage) for stage in self.training.batch_size_warmup]
        allowed = f"[] at parallelism.pipeline_parallel_size={stages}, whose schedule has a fixed number of micro batches"
        require(stages == 1 or not growing, "training.batch_size_warmup", growing, allowed)

    @property
    def replica_check_steps(self) -> int:
        """`guard.replica_check_steps` as it is for this layout: 0 is never."""
        asked = self.guard.replica_check_steps
        if asked >= 0:
            return asked
        return REPLICA_CHECK_STEPS if self.resources.num_workers > 1 and not self._divided() else 0

    def _check_replicas(self) -> None:
        for name in self._divided():
            found, asked = getattr(self.parallelism, name), self.guard.replica_check_steps
            allowed = f"0 or -1 at parallelism.{name}={found}, where no rank holds a whole copy"
            require(asked <= 0, "guard.replica_check_steps", asked, allowed)

    def _divided(self) -> list[str]:
        """Settings of `parallelism` by which no rank holds a whole copy."""
        sizes = {"zero_stage": 2, **dict.fromkeys(SIZES, 1)}
        return [name for name, most in sizes.items() if getattr(self.parallelism, name) > most]

    def _check_float8(self) -> None:
        asked, precision, on_gpu = self.training.float8, self.training.precision, self.resources.gpus_per_worker > 0
        if asked is Float8.none:
            return
        allowed = "none without GPUs; to see on a CPU what it does to a loss choose training.float8_emulated=true training.precision=bf16"
        require(on_gpu or self.training.float8_emulated, "training.float8", asked.value, allowed)
        ok = precision is Precision.bf16 or (precision is Precision.auto and on_gpu)
        allowed = f"none at training.precision={precision.value}: what is not in fp8 must be in bf16; choose training.precision=bf16"
        require(ok, "training.float8", asked.value, allowed)
        for name in ("tensor_parallel_size", "expert_parallel_size"):
            size = getattr(self.parallelism, name)
            allowed = f"none at parallelism.{name}={size}, where DeepSpeed puts layers of its own in the place of these"
            require(size == 1, "training.float8", asked.value, allowed)

    def _check_sequences(self) -> None:
        """The ranks of a sequence get as many positions each, and as many heads. Where the options do not say, the ranks check."""
        size, together = self.parallelism.sequence_parallel_size, self.parallelism.tensor_parallel_size
        if size == 1:
            return
        for group, name, among in (("data", "block_size", 1), ("model", "num_heads", together)):
            count = getattr(self, group).options.get(name)
            if isinstance(count, int) and count > 0:
                divisors = [n for n in range(1, count + 1) if count % (n * among) == 0] or [1]
                shared = f" / parallelism.tensor_parallel_size={among}" if among > 1 else ""
                allowed = f"a divisor of {group}.options.{name}={count}{shared}: {', '.join(map(str, divisors))}"
                require(size in divisors, "parallelism.sequence_parallel_size", size, allowed)

    def _check_quantized(self) -> None:
        for name in ("zero_quantized_weights", "zero_quantized_gradients"):
            asked = getattr(self.parallelism, name)
            allowed = "false without GPUs, because DeepSpeed quantizes by a CUDA op; for true choose resources.gpus_per_worker=1"
            require(not asked or self.resources.gpus_per_worker > 0, f"parallelism.{name}", asked, allowed)

    def _check_whole_matrices(self) -> None:
        name, parts = self.optimizer.name, self.parallelism
        if name not in (OptimizerName.muon, OptimizerName.adafactor):
            return
        for size in SIZES:
            allowed = f"1 with optimizer.name={name.value}, which looks at whole matrices"
            require(getattr(parts, size) == 1, f"parallelism.{size}", getattr(parts, size), allowed)
        if name is OptimizerName.adafactor:
            allowed = (
                f"adamw, sgd, lion, muon at parallelism.zero_stage={parts.zero_stage}, because ZeRO cuts a matrix anywhere and Adafactor "
                "keeps sums over its rows and columns; for adafactor choose parallelism.zero_stage=0"
            )
            require(parts.zero_stage == 0, "optimizer.name", name.value, allowed)
        allowed = "none with optimizer.name=muon, which puts its matrices together on the devices; muon keeps a third less than adamw"
        require(parts.offload_optimizer is Offload.none, "parallelism.offload_optimizer", parts.offload_optimizer.value, allowed)

    def _check_clipping(self) -> None:
        """DeepSpeed's optimizer for 16 bits at ZeRO 0 leaves the other tensor ranks' gradients, and all experts', out of its norm.
        A pipeline's for fp16 does not see which gradients are of tied weights."""
        parts = self.parallelism
        narrow = self.training.precision in (Precision.bf16, Precision.fp16)
        narrow |= self.training.precision is Precision.auto and self.resources.gpus_per_worker > 0
        wide = parts.pipeline_parallel_size == 1 or parts.zero_stage > 0 or self.training.precision is not Precision.fp16
        allowed = "1 in fp16 at parallelism.zero_stage=0, where a tied weight's gradient would count twice; choose ZeRO 1, or bf16"
        require(wide, "parallelism.pipeline_parallel_size", parts.pipeline_parallel_size, allowed)
        allowed = "1 in 16 bits at parallelism.zero_stage=0, where the gradient's norm would be wrong; choose ZeRO 1, 2 or 3, or fp32"
        for name in ("tensor_parallel_size", "expert_parallel_size"):
            size = getattr(parts, name)
            require(size == 1 or parts.zero_stage > 0 or not narrow, f"parallelism.{name}", size, allowed)

    def _check_recomputation(self) -> None:
        """What is kept of a product must stay as it was."""
        size, how = self.parallelism.tensor_parallel_size, self.training.activation_checkpointing
        ok = size == 1 or how is not ActivationCheckpointing.selective
        allowed = f"none or full at parallelism.tensor_parallel_size={size}, where DeepSpeed adds up the ranks' products in place"
        require(ok, "training.activation_checkpointing", how.value, allowed)
