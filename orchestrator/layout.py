"""Which worlds a spec can be trained on, and the DeepSpeed config of each. Pure: no torch, no I/O.

The global batch G is what was asked for; micro batch x accumulation x data-parallel size = G decides the rest, and the world is
data-parallel x tensor-parallel x pipeline-parallel x sequence-parallel size. The scheduler resizes a job only within `legal(spec)`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from orchestrator.errors import LayoutError
from orchestrator.spec import SIZES, JobSpec, Offload, OptimizerName, OptimizerSpec, ParallelismSpec, Precision

_LARGEST_BATCH = 1 << 32
"""Samples; its divisors are found at once."""


@dataclass(frozen=True, kw_only=True)
class Layout:
    """One legal way to train a spec. `world_size` ranks, each doing `gradient_accumulation_steps` micro batches per step.

    rank = ((stage x data-parallel size + data-parallel rank) x sequence-parallel size + sequence-parallel rank) x tensor-parallel size
    + tensor-parallel rank, so tensor-parallel ranks are neighbours. Ranks of one data-parallel rank see the same samples. Experts are
    dealt out among `expert_parallel_size` neighbouring data-parallel ranks.
    """

    world_size: int
    micro_batch_size: int
    gradient_accumulation_steps: int
    zero_stage: int
    tensor_parallel_size: int = 1
    pipeline_parallel_size: int = 1
    sequence_parallel_size: int = 1
    expert_parallel_size: int = 1

    @property
    def data_parallel_size(self) -> int:
        return self.world_size // (self.tensor_parallel_size * self.pipeline_parallel_size * self.sequence_parallel_size)

    @property
    def global_batch_size(self) -> int:
        return self.data_parallel_size * self.micro_batch_size * self.gradient_accumulation_steps

    @property
    def pipeline_idle_share(self) -> float:
        """Share of a step that a stage waits for others while the pipeline fills and drains: (p - 1) / (m + p - 1) for p stages and m
        micro batches (GPipe, Huang et al. 2019)."""
        waiting = self.pipeline_parallel_size - 1
        return waiting / (self.gradient_accumulation_steps + waiting)

    @property
    def sequence_data_parallel_size(self) -> int:
        """Ranks that ZeRO divides the state among: those that see different positions or samples."""
        return self.data_parallel_size * self.sequence_parallel_size

    def data_parallel_rank(self, rank: int) -> int:
        return rank // (self.tensor_parallel_size * self.sequence_parallel_size) % self.data_parallel_size

    def tensor_parallel_rank(self, rank: int) -> int:
        return rank % self.tensor_parallel_size

    def sequence_parallel_rank(self, rank: int) -> int:
        return rank // self.tensor_parallel_size % self.sequence_parallel_size

    def sequence_data_parallel_rank(self, rank: int) -> int:
        return rank // self.tensor_parallel_size % self.sequence_data_parallel_size

    def pipeline_stage(self, rank: int) -> int:
        return rank // (self.world_size // self.pipeline_parallel_size)


def legal(spec: JobSpec) -> tuple[Layout, ...]:
    """Every world size that can train `spec`, each batch of the warm-up as well; ascending."""
    micro = spec.training.micro_batch_size
    whole = spec.training.global_batch_size
    if whole > _LARGEST_BATCH:
        raise LayoutError(f"training.global_batch_size={whole} is not possible: allowed is at most {_LARGEST_BATCH}.")
    for batch in spec.training.batch_sizes[::-1]:
        if batch % micro:
            raise LayoutError(_undivided(spec, batch))
    micro_batches = math.gcd(*(batch // micro for batch in spec.training.batch_sizes))
    sizes = {name: getattr(spec.parallelism, name) for name in SIZES}
    apart = math.prod(sizes.values()) // sizes["expert_parallel_size"]
    return tuple(
        Layout(
            world_size=size * apart,
            micro_batch_size=micro,
            gradient_accumulation_steps=spec.training.global_batch_size // micro // size,
            zero_stage=spec.parallelism.zero_stage,
            **sizes,
        )
        for size in _divisors(micro_batches)
        if size % sizes["expert_parallel_size"] == size % spec.parallelism.zero_hpz_partition_size == 0
    )


def layout_for(spec: JobSpec) -> Layout:
    """The layout of the asked-for number of workers. Raises LayoutError naming the possible ones."""
    layouts = legal(spec)
    for layout in layouts:
        if layout.world_size == spec.resources.num_workers:
            return layout
    workers = spec.resources.num_workers
    for name in (*SIZES, "zero_hpz_partition_size"):
        if workers % getattr(spec.parallelism, name):
            raise LayoutError(
                f"parallelism.{name}={getattr(spec.parallelism, name)} does not divide resources.num_workers={workers}: "
                f"possible numbers of workers are {_some([x.world_size for x in layouts])}."
            )
    raise LayoutError(_unshared(spec, [layout.world_size for layout in layouts]))


def legal_world_sizes(spec: JobSpec) -> tuple[int, ...]:
    """World sizes that the job may have, ascending: those from `resources.min_workers` to `resources.num_workers` that can share its
    batches; `resources.num_workers` alone of a job that does not shrink.

    Any of them continues any checkpoint. Raises LayoutError naming the possible ones, also where `min_workers` leaves none to shrink to.
    """
    full, least = layout_for(spec).world_size, spec.resources.min_workers
    if least in (0, full):
        return (full,)
    smaller = [layout.world_size for layout in legal(spec) if layout.world_size < full]
    if not any(size >= least for size in smaller):
        possible = f"of the smaller numbers {_some(smaller)} are legal" if smaller else "no smaller number is legal"
        choice = f"at most {smaller[-1]}, or 0 (all or none)" if smaller else "0 (all or none)"
        raise LayoutError(
            f"resources.min_workers={least} leaves nothing to shrink to from resources.num_workers={full}: {possible}. Choose {choice}."
        )
    return (*(size for size in smaller if size >= least), full)


def smaller_micro_batch(spec: JobSpec) -> JobSpec | None:
    """`spec` with half the micro batch (or the next smaller part that divides it) and the same global batch, so that each rank does twice
    as many of them in a step; None if there is no such spec for its number of workers."""
    micro = spec.training.micro_batch_size
    part = next((n for n in _divisors(micro)[1:]), None)
    if part is None:
        return None
    smaller = replace(spec, training=replace(spec.training, micro_batch_size=micro // part))
    try:
        layout_for(smaller)
    except LayoutError:
        return None
    return smaller


def _undivided(spec: JobSpec, batch: int) -> str:
    """Why the micro batch does not fit the global batch, or one of those before it."""
    micro, whole = spec.training.micro_batch_size, spec.training.global_batch_size
    if batch == whole:
        possible = _some(_divisors(batch))
        return f"training.micro_batch_size={micro} does not divide training.global_batch_size={batch}. Possible micro batches: {possible}."
    possible = _some(range(micro, whole, micro))
    return f"training.micro_batch_size={micro} does not divide {batch} of training.batch_size_warmup. Possible on the way: {possible}."


def _unshared(spec: JobSpec, worlds: list[int]) -> str:
    """Why the workers asked for cannot share the batches."""
    micro, workers, whole = spec.training.micro_batch_size, spec.resources.num_workers, spec.training.global_batch_size
    *smaller, _ = spec.training.batch_sizes
    also = f" and {', '.join(map(str, smaller))} of training.batch_size_warmup" if smaller else ""
    least = micro * workers // math.prod(getattr(spec.parallelism, name) for name in SIZES if name != "expert_parallel_size")
    ways = f", or batches on the way among {_some(range(least, whole, least))}" if smaller and whole % least == 0 else ""
    return (
        f"resources.num_workers={workers} cannot share training.global_batch_size={whole}{also} in micro batches of {micro}: "
        f"{whole // micro} micro batches per step need a number of workers among {_some(worlds)}{ways}."
    )


def deepspeed_config(spec: JobSpec, layout: Layout, precision: Precision) -> dict[str, Any]:
    """The DeepSpeed dict of a layout. `precision` is resolved: never `auto`.

    The learning rate is set by the training loop before each step, so no scheduler stands here. A tied head stays whole, so that a
    workload's loss sees all logits. Where the optimizer is plain, the engine clips. A rank's slice of a sequence is a sample to DeepSpeed,
    whose mean over all ranks is then that over all positions.
    """
    if precision is Precision.auto:
        raise ValueError("precision must be resolved before the DeepSpeed config is made")
    parts, plain = spec.parallelism, plain_optimizer(layout, precision, spec.parallelism)
    stage: dict[str, Any] = {"stage": 0} if plain else {"stage": layout.zero_stage, **_buckets(spec)}
    config: dict[str, Any] = {
        "train_batch_size": layout.global_batch_size * layout.sequence_parallel_size,
        "train_micro_batch_size_per_gpu": layout.micro_batch_size,
        "gradient_accumulation_steps": layout.gradient_accumulation_steps,
        "gradient_clipping": 0.0 if plain else spec.training.gradient_clipping,
        "zero_optimization": {**stage, **_offload(spec), **_zero_plus_plus(parts), **_linear(spec)},
        **_optimizer(spec),
        "zero_allow_untested_optimizer": True,
        "steps_per_print": 2**31 - 1,
        "wall_clock_breakdown": False,
        "timers": {"throughput": {"enabled": False}},  # it would wait for the device at each micro batch
    }
    if layout.tensor_parallel_size > 1:
        config["tensor_parallel"] = {"autotp_size": layout.tensor_parallel_size, "vocab_parallel_lm_head": False}
    if layout.expert_parallel_size > 1:
        config["expert_parallel"] = {"enabled": True, "autoep_size": layout.expert_parallel_size}
    if precision is Precision.bf16:
        config["bf16"] = {"enabled": True}
    if precision is Precision.fp16:
        config["fp16"] = {"enabled": True, "initial_scale_power": 16}
    return config


def plain_optimizer(layout: Layout, precision: Precision, asked: ParallelismSpec) -> bool:
    """Whether the optimizer works on the model's own fp32 tensors: at ZeRO 0, and at ZeRO 1 and 2 without a second rank to divide by.

    There DeepSpeed's copies into flat tensors would take time and change nothing (docs/decisions/0016).
    """
    whole = layout.zero_stage == 0 or (layout.zero_stage < 3 and layout.sequence_data_parallel_size == 1)
    apart = layout.pipeline_parallel_size > 1  # whose engine clips over the stages
    return precision is Precision.fp32 and asked.offload_optimizer is Offload.none and whole and not apart


def _buckets(spec: JobSpec) -> dict[str, Any]:
    """How gradients travel at ZeRO 1 and 2. Without these, DeepSpeed waits for the last gradient (ZeRO 1) in one bucket of 10^9 bytes.

    On GPUs buckets of 100 MB (in 16 bits) go out while the backward pass computes the next. On CPUs nothing overlaps;
    there buckets are small enough for the cache, and are reduced to the rank that keeps them instead of to all.
    """
    if spec.parallelism.zero_stage not in (1, 2):
        return {}
    if spec.resources.gpus_per_worker:
        return {"overlap_comm": True, "reduce_bucket_size": 50_000_000}
    return {"reduce_bucket_size": 2_000_000, "use_multi_rank_bucket_allreduce": False}


def _offload(spec: JobSpec) -> dict[str, Any]:
    """On NVMe each rank puts a folder of its own in the place of the path, and the size of the sub-groups (`runtime.disk`)."""
    asked = spec.parallelism
    parts = {"offload_optimizer": asked.offload_optimizer, "offload_param": asked.offload_parameters}
    found: dict[str, Any] = {name: {"device": where.value} for name, where in parts.items() if where is not Offload.none}
    if asked.offload_optimizer is Offload.nvme:
        found["offload_optimizer"] |= {"nvme_path": asked.nvme_path, "buffer_count": 2 + _states_per_weight(spec.optimizer)}
    return found


def _states_per_weight(asked: OptimizerSpec) -> int:
    """Numbers that the optimizer keeps for each weight. DeepSpeed's buffers hold these, the weights and the gradients of a sub-group."""
    if asked.name is OptimizerName.sgd:
        return int(asked.momentum > 0)
    return {OptimizerName.adamw: 2, OptimizerName.lion: 1}[asked.name]


def _linear(spec: JobSpec) -> dict[str, Any]:
    """At ZeRO 3 DeepSpeed gives torch a linear layer of its own, which keeps no views of weights. What is compiled keeps none anyway."""
    compiled = spec.training.compile and spec.parallelism.zero_stage == 3
    return {"memory_efficient_linear": False} if compiled else {}


def _zero_plus_plus(asked: ParallelismSpec) -> dict[str, Any]:
    """Wang et al. 2023, arXiv:2306.10209; only what is asked for."""
    names = ("zero_hpz_partition_size", "zero_quantized_weights", "zero_quantized_gradients")
    return {name: getattr(asked, name) for name in names if getattr(asked, name) not in (1, False)}


def _optimizer(spec: JobSpec) -> dict[str, Any]:
    """The section `optimizer`; none for what the engine brings along, which DeepSpeed is to take also where it offloads.

    torch's fused AdamW is one kernel on a GPU, and one pass over memory on a CPU.
    """
    asked = spec.optimizer
    if asked.name in (OptimizerName.lion, OptimizerName.muon, OptimizerName.adafactor):
        return {"zero_force_ds_cpu_optimizer": False}
    if asked.name is OptimizerName.sgd:
        return {"optimizer": {"type": "SGD", "params": {"lr": asked.lr, "momentum": asked.momentum, "weight_decay": asked.weight_decay}}}
    params = {"lr": asked.lr, "betas": list(asked.betas), "eps": asked.eps, "weight_decay": asked.weight_decay}
    return {"optimizer": {"type": "AdamW", "params": {**params, "torch_adam": True, "fused": True}}}


def _divisors(number: int) -> list[int]:
    small = [n for n in range(1, math.isqrt(number) + 1) if number % n == 0]
    return small + [number // n for n in reversed(small) if n * n != number]


def _some(numbers: Sequence[int]) -> str:
    shown = ", ".join(str(n) for n in numbers[:12])
    return shown + (" ..." if len(numbers) > 12 else "")
