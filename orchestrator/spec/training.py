"""How to train: steps, batches, number format, optimizer."""

from __future__ import annotations

import enum
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from orchestrator.spec.checks import at_least, require


class Precision(enum.Enum):
    """Number format of the forward and backward pass; master weights and optimizer state are always fp32."""

    auto = "auto"  # bf16 where the hardware multiplies it fast, else fp32
    fp32 = "fp32"
    bf16 = "bf16"
    fp16 = "fp16"


class ActivationCheckpointing(enum.Enum):
    """What the backward pass computes again instead of finding it in memory."""

    none = "none"
    full = "full"  # everything inside a block; about a third more computation
    selective = "selective"  # everything inside a block but products of matrices and attention


class CompileBackend(enum.Enum):
    """What torch.compile makes of a model's graph."""

    inductor = "inductor"  # fused kernels
    aot_eager = "aot_eager"  # the same operators again: shows what the graph itself costs or breaks


class Float8(enum.Enum):
    """How products of matrices are rounded to 8 bits: how many numbers share a scale."""

    none = "none"  # they are not
    tensorwise = "tensorwise"  # one scale per tensor: the fastest
    rowwise = "rowwise"  # one per row, a power of two: more exact
    rowwise_with_gw_hp = "rowwise_with_gw_hp"  # and gradients of weights in bf16: the most exact


@dataclass(frozen=True, kw_only=True)
class TrainingSpec:
    """How long and in what portions to train. A step is an optimizer step."""

    max_steps: int
    global_batch_size: int
    """Samples per optimizer step over all ranks; never changed by the number of workers."""
    micro_batch_size: int
    """Samples of one forward pass of one rank."""
    batch_size_warmup: tuple[tuple[int, ...], ...] = ()
    """Smaller global batches at the start: `[[until_sample, batch], ...]`, each for the steps that begin before that many samples were
    seen; then `global_batch_size`. The learning rate goes by steps as ever."""
    precision: Precision = Precision.auto
    float8: Float8 = Float8.none
    """Products of matrices in fp8 where the rest computes in bf16, in linear layers but the head (torchao's recipes). Needs GPUs of compute
    capability 8.9 or more, and `training.compile` to be fast."""
    float8_emulated: bool = False
    """The same rounding computed without fp8 hardware, slowly: to see what it does to a loss."""
    gradient_clipping: float = 1.0
    """Largest global gradient norm; 0 switches clipping off."""
    activation_checkpointing: ActivationCheckpointing = ActivationCheckpointing.none
    """For a model made of blocks, such as a transformer: less memory for more computation. The losses stay the same."""
    compile: bool = False
    """torch.compile: whole models at ZeRO 0 to 2, block by block at ZeRO 3. The first step takes a minute longer."""
    compile_backend: CompileBackend = CompileBackend.inductor
    channels_last: bool = False
    """Images reach a convolutional model with their channels innermost in memory (NHWC), as a GPU's kernels want them."""
    eval_interval_steps: int = 0
    """Evaluate every so many steps; 0: only before the first and after the last."""
    eval_samples: int = 0
    """Samples of the validation split that an evaluation reads; 0: all."""
    sample_at_evaluation: bool = False
    """At each evaluation keep what the model says (the workload's `sample`) as the artifact `sample-<step>.txt`."""
    log_interval_steps: int = 1
    """Metrics are read from the device and reported every so many steps; also how fast an order to stop is heard."""
    profile_steps: tuple[int, ...] = ()
    """First and last step of which rank 0 leaves a trace (and, of a GPU, the memory's history) as artifacts; empty: none."""
    seed: int = 0
    ema_decay: float = 0.0
    """Keep a moving average of the weights, of which this share stays at each step, such as 0.999; 0: none. Takes 4 bytes per parameter."""
    evaluate_ema: bool = True
    """Evaluate and sample with the average, where there is one; training goes on with the weights."""
    best_metric: str = "loss"
    """The figure of an evaluation that says which is better: for early stopping and for `checkpoint.keep_best`."""
    best_maximize: bool = False
    """More of it is better, as of an accuracy."""
    early_stopping_patience: int = 0
    """End the job after so many evaluations in a row that are no better than the best before them; 0: never."""
    early_stopping_min_delta: float = 0.0
    """An evaluation is better, for early stopping, if it is by more than this."""

    def __post_init__(self) -> None:
        steps = self.profile_steps
        ok = not steps or (len(steps) == 2 and 1 <= steps[0] <= steps[1] <= self.max_steps)
        allowed = f"[] or the first and last of at most {self.max_steps} steps, such as [3,5]"
        require(ok, "training.profile_steps", list(steps), allowed)
        for name in ("max_steps", "global_batch_size", "micro_batch_size", "log_interval_steps"):
            value = getattr(self, name)
            require(value >= 1, f"training.{name}", value, "a whole number of at least 1")
        self._check_warmup()
        at_least(0, "training", self, "eval_interval_steps", "eval_samples", "seed", "gradient_clipping")
        at_least(0, "training", self, "early_stopping_patience", "early_stopping_min_delta")
        why = "0 at training.eval_interval_steps=0, which evaluates only at the end; evaluate every so many steps"
        ok = self.early_stopping_patience == 0 or self.eval_interval_steps > 0
        require(ok, "training.early_stopping_patience", self.early_stopping_patience, why)
        allowed = "false at training.float8=none, where nothing is rounded"
        require(self.float8 is not Float8.none or not self.float8_emulated, "training.float8_emulated", "true", allowed)
        require(0 <= self.ema_decay < 1, "training.ema_decay", self.ema_decay, "0 (no average) up to, but not, 1")

    @property
    def batch_sizes(self) -> tuple[int, ...]:
        """Samples per step, from the first stage of the warm-up to `global_batch_size`."""
        return (*(batch for _, batch in self.batch_size_warmup), self.global_batch_size)

    def batch_size_at(self, position: int) -> int:
        """Samples of the step that begins when `position` samples were seen."""
        return next((batch for until, batch in self.batch_size_warmup if position < until), self.global_batch_size)

    def _check_warmup(self) -> None:
        flag, shown = "training.batch_size_warmup", [list(stage) for stage in self.batch_size_warmup]
        require(all(len(stage) == 2 for stage in shown), flag, shown, "a list of [until_sample, batch], such as [[1000,8],[4000,16]]")
        ok = _grows([until for until, _ in shown]) and _grows(self.batch_sizes)
        whole = f"training.global_batch_size={self.global_batch_size}"
        allowed = f"samples and batches that grow from stage to stage from more than 0, the batches to less than {whole}"
        require(ok, flag, shown, allowed)


def _grows(numbers: Sequence[int]) -> bool:
    return all(low < high for low, high in pairwise((0, *numbers)))


class Schedule(enum.Enum):
    constant = "constant"
    linear = "linear"
    cosine = "cosine"
    wsd = "wsd"  # warm-up, stable, decay


class OptimizerName(enum.Enum):
    adamw = "adamw"
    sgd = "sgd"
    lion = "lion"
    muon = "muon"
    adafactor = "adafactor"


WHY_NO_OPTIMIZER = {"lamb": "LAMB scales each layer by the norm of all its weights, of which a rank holds a part under ZeRO."}
"""Optimizers that people ask for, and why their state cannot go from one ZeRO stage or world size to another."""


def why_no_optimizer(name: str) -> str:
    """A sentence after a space, or nothing."""
    return f" {WHY_NO_OPTIMIZER[name.lower()]}" if name.lower() in WHY_NO_OPTIMIZER else ""


@dataclass(frozen=True, kw_only=True)
class OptimizerSpec:
    name: OptimizerName = OptimizerName.adamw
    """muon and adafactor look at whole matrices: neither can be divided but by ZeRO, adafactor not even by that."""
    lr: float = 1e-3
    """Learning rate after warm-up."""
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    weight_decay: float = 0.1
    """Decoupled; not applied to parameters of one dimension (norms, biases)."""
    momentum: float = 0.9
    """Of sgd and of muon."""
    schedule: Schedule = Schedule.cosine
    warmup_steps: int = 0
    min_lr_ratio: float = 0.1
    """The schedule ends at this share of `lr` at `training.max_steps`."""
    decay_share: float = 0.1
    """Of wsd: the share of `training.max_steps` in which the rate falls, at the end."""

    def __post_init__(self) -> None:
        require(0 < self.lr < math.inf, "optimizer.lr", self.lr, "more than 0")
        at_least(0, "optimizer", self, "eps", "weight_decay")
        require(0 <= self.momentum < 1, "optimizer.momentum", self.momentum, "a number in [0, 1)")
        require(len(self.betas) == 2 and all(0 <= b < 1 for b in self.betas), "optimizer.betas", self.betas, "two numbers in [0, 1)")
        require(self.warmup_steps >= 0, "optimizer.warmup_steps", self.warmup_steps, "0 or more")
        require(0 <= self.min_lr_ratio <= 1, "optimizer.min_lr_ratio", self.min_lr_ratio, "from 0 to 1")
        require(0 < self.decay_share <= 1, "optimizer.decay_share", self.decay_share, "more than 0, up to 1")
