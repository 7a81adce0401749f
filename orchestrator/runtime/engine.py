"""DeepSpeed behind one class: the only module that knows how an optimizer step is made."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import deepspeed
import torch
import torch.distributed as dist
from deepspeed.utils import groups as deepspeed_groups

from orchestrator.communication import bytes_per_step
from orchestrator.errors import ConfigError, WorkloadError
from orchestrator.layout import Layout, deepspeed_config
from orchestrator.runtime.compilation import compile_blocks, compile_model
from orchestrator.runtime.disk import place
from orchestrator.runtime.ema import WeightAverage
from orchestrator.runtime.experts import group_of_experts, mixtures_of, names_in_the_registry, parts_with_experts
from orchestrator.runtime.float8 import multiply_in_float8
from orchestrator.runtime.gradients import gradient_norm
from orchestrator.runtime.initialise import Values, partition_at_once
from orchestrator.runtime.link import Phase
from orchestrator.runtime.optimizers import own_optimizer, parameter_groups
from orchestrator.runtime.pipeline import Pipeline, Sums
from orchestrator.runtime.recompute import checkpoint_activations
from orchestrator.runtime.sequence_parallel import SequenceShare, group_of
from orchestrator.runtime.state import EngineState
from orchestrator.runtime.tensor_parallel import exchanged_width, gather, make_groups, parts_of, shapes_of
from orchestrator.spec import JobSpec, Offload, Precision
from orchestrator.workload import Initialise

Batch = Mapping[str, torch.Tensor]
Loss = Callable[[torch.nn.Module, Batch], torch.Tensor]
Layers = Callable[[torch.nn.Module], Sequence[torch.nn.Module]]

_DTYPES = {Precision.fp32: torch.float32, Precision.bf16: torch.bfloat16, Precision.fp16: torch.float16}


@dataclass(frozen=True, kw_only=True)
class StepReport:
    """What a step left on the device; reading it waits for the device, so it is read at log steps only."""

    loss: torch.Tensor
    """Mean over this rank's samples (its positions of them) of the step, float64 scalar."""
    grad_norm: Any
    """Global norm before clipping, a scalar; infinite if the step was skipped by the loss scaler."""


def resolve_precision(asked: Precision, device: torch.device) -> Precision:
    """`auto` is bf16 on a GPU and fp32 on a CPU."""
    if asked is not Precision.auto:
        return asked
    return Precision.bf16 if device.type == "cuda" else Precision.fp32


def disable_shared_memory_op() -> None:
    """DeepSpeed would compile an op for CPU collectives at the first start (docs/decisions/0001). To be called before its set-up.

    Its table of ops is set whole: to read it would run a compiler to see what works, and only collectives ask it.
    """
    deepspeed.ops.__compatible_ops__ = {"deepspeed_shm_comm": False}


class Engine:
    """A model under training on this rank. The process group exists; every rank makes its own at the same time.

    `layers` and `sequence_fields` are the workload's (`OffersLayers`, `OffersSequence`), for layouts that need them. Each rank of a
    pipeline keeps its own layers of `model`. With `initialise` (`OffersInitialisation`) the model is on the meta device, and a rank fills
    only what it keeps. `disk`: an empty folder of this rank's, for layouts that keep state in files.
    """

    def __init__(
        self, model: torch.nn.Module, loss: Loss, spec: JobSpec, layout: Layout, device: torch.device, *, layers: Layers | None = None,
        sequence_fields: Mapping[str, int] | None = None, initialise: Initialise | None = None, disk: Path | None = None,
    ) -> None:  # fmt: skip
        self.precision = resolve_precision(spec.training.precision, device)
        self.dtype = _DTYPES[self.precision]
        self.device = device
        self.layout = layout
        self._loss = loss
        if initialise is None:
            for parameter in model.parameters():
                parameter.data = parameter.data.contiguous()
        values = Values(model, initialise, spec.training.seed, device, self.dtype) if initialise else None
        if spec.training.channels_last:
            _check_images(model)
        self._channels_last = spec.training.channels_last
        multiply_in_float8(model, spec.training, device)
        checkpoint_activations(model, spec.training.activation_checkpointing)
        compile_blocks(model, spec.training, layout)
        shapes, groups, mixtures = shapes_of(model), make_groups(model, layout), mixtures_of(model, layout)
        config = deepspeed_config(spec, layout, self.precision)
        self._pipeline = _pipeline(model, layers, self._checked_loss, layout, values)
        trained = self._pipeline.module if self._pipeline else model
        self._share = SequenceShare(layout, sequence_fields or {}, dist.get_rank(), group_of(layout))
        self._share.adapt(model)
        groups_of_parameters, optimizer = parameter_groups(trained), own_optimizer(spec.optimizer, trained, bool(mixtures))
        if spec.parallelism.offload_optimizer is Offload.nvme:
            place(config, disk, [x.numel() for x in trained.parameters() if x.requires_grad], layout.world_size)
        if values and not self._pipeline:
            values.fill(model, partition_at_once(layout, config))  # from here on ZeRO 3 hides shapes
        with names_in_the_registry() if mixtures else nullcontext():
            self._engine, *_ = deepspeed.initialize(
                model=trained,
                model_parameters=groups_of_parameters,
                optimizer=optimizer,
                config=config,
                mpu=groups,
                dist_init_required=False,
            )
        compile_model(self._engine, spec.training, layout)
        _match_running_statistics(self.module, self.dtype)
        parts = self._pipeline.parts if self._pipeline else parts_of(shapes, self.module, layout)
        self._parts = parts_with_experts(parts, mixtures, self.module)
        self.state = EngineState(self._engine, self._parts, layout, self._pipeline)
        self.average = WeightAverage(self.state, spec.training.ema_decay, spec.training.evaluate_ema)
        self._compiles = spec.training.compile
        """Whether the next forward and backward pass makes kernels first."""
        if self._pipeline:
            self._pipeline.start(self._engine, self.to_device)
        self._plain_optimizer = isinstance(self._engine.optimizer, torch.optim.Optimizer)
        self._max_norm = spec.training.gradient_clipping
        if self._plain_optimizer and layout.sequence_data_parallel_size == 1:
            self._engine.enable_backward_allreduce = False  # it would copy all gradients to and fro

    @property
    def module(self) -> torch.nn.Module:
        """The model for evaluation. A forward pass needs all ranks under ZeRO 3, else all ranks of a group of another kind."""
        module: torch.nn.Module = self._engine.module
        return module

    def replicated(self) -> list[torch.Tensor]:
        """What every rank holds the same copy of: the weights that it computes with and, at ZeRO 0, the optimizer's state.

        Not the buffers: the ranks' own batches move running means apart.
        """
        weights = list(self.module.parameters())
        return weights + [piece.data for piece in self.state.trained_pieces()] if self.layout.zero_stage == 0 else weights

    def sent_bytes(self, spec: JobSpec, tokens_per_sample: int) -> dict[str, float]:
        """What this rank sends per step, by kind of collective."""
        trainable = [self._parts[id(parameter)].num_elements for parameter in self.module.parameters() if parameter.requires_grad]
        width, size = exchanged_width(self._parts) * tokens_per_sample, self.dtype.itemsize
        return bytes_per_step(self.layout, sum(trainable), size, to_owner=spec.resources.gpus_per_worker == 0, width=width)

    @property
    def skipped_steps(self) -> int:
        return int(self._engine.skipped_steps)

    def set_batch_size(self, samples: int) -> None:
        """Of the next steps, over all ranks: by more or fewer micro batches in a step. Only between steps."""
        counted = samples * self.layout.sequence_parallel_size  # by DeepSpeed, to which a slice of a sequence is a sample
        if counted == self._engine.train_batch_size():
            return
        self._engine.set_train_batch_size(counted)
        self._engine.micro_steps = 0  # a step ends where this is a multiple of the micro batches in a step
        if hasattr(self._engine.optimizer, "gradient_accumulation_steps"):
            self._engine.optimizer.gradient_accumulation_steps = self._engine.gradient_accumulation_steps()

    def loss_scale(self) -> dict[str, float]:
        """`loss_scale` where losses are scaled, which is in fp16."""
        found = self.state.loss_scale()
        return {"loss_scale": float(found["cur_scale"])} if "cur_scale" in found else {}

    def step(self, micro_batches: Iterable[Batch], lr: float, tick: Callable[[Phase], None] = lambda phase: None) -> StepReport:
        """One optimizer step over this rank's micro batches of it. `tick` is told where it is."""
        self._set_lr(lr)
        skipped = self.skipped_steps
        loss, norm = self._pipeline.step(micro_batches, tick) if self._pipeline else self._step(micro_batches, tick)
        if self.skipped_steps == skipped:
            self.average.update()
        return StepReport(loss=loss, grad_norm=norm)

    def _step(self, micro_batches: Iterable[Batch], tick: Callable[[Phase], None]) -> tuple[torch.Tensor, Any]:
        """(mean loss, gradient norm) where DeepSpeed steps by forward, backward, step."""
        losses = []
        for batch in micro_batches:
            tick(Phase.COMPILE if self._compiles else Phase.FORWARD)
            loss = self._checked_loss(self._engine, self.to_device(batch))
            losses.append(loss.detach())
            tick(Phase.COMPILE if self._compiles else Phase.BACKWARD)
            self._engine.backward(loss)
            if len(losses) < self._engine.gradient_accumulation_steps():
                self._engine.step()  # counts the micro batch
            self._compiles = False
            tick(Phase.DATA)
        tick(Phase.OPTIMIZER)
        norm = self._clip() if self._plain_optimizer else None
        self._engine.step()
        mean = torch.stack(losses).double().mean()
        return mean, self._engine.get_global_grad_norm() if norm is None else norm

    def evaluate(self, evaluate: Callable[[torch.nn.Module, Batch], Sums], batch: Batch) -> Sums:
        """The workload's sums over a batch, which all ranks of a data-parallel rank have. In a pipeline only its last stage gets them."""
        if self._pipeline:
            return self._pipeline.evaluate(evaluate, self.to_device(batch))
        return evaluate(self.module, self.to_device(batch))

    def to_device(self, batch: Batch) -> Batch:
        """This rank's positions, where the model is, fractions in the number format that it computes in, images in its memory format."""
        moved = {
            name: value.to(self.device, self.dtype if value.is_floating_point() else value.dtype, non_blocking=True)
            for name, value in self._share.cut(batch).items()
        }
        if self._channels_last:
            return {name: x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x for name, x in moved.items()}
        return moved

    def whole_module(self, build: Callable[[], torch.nn.Module], mine: bool) -> torch.nn.Module | None:
        """The model as this rank alone can run it, where `mine`. All ranks together.

        Where the ranks hold parts of it or attend together, it is built anew and its parameters are gathered one by one; otherwise it is
        the model itself.
        """
        if self._pipeline:
            return self._pipeline.whole(build, mine, self.dtype)
        sizes = self.layout.tensor_parallel_size, self.layout.sequence_parallel_size, self.layout.expert_parallel_size
        if self.layout.zero_stage < 3 and sizes == (1, 1, 1):
            return self.module if mine else None
        copy = build().to(self.device) if mine else None
        targets = dict(copy.named_parameters()) if copy is not None else {}
        filled: set[str] = set()
        for parameter in self.module.parameters():
            part = self._parts[id(parameter)]
            with deepspeed.zero.GatheredParameters([parameter]):
                whole = gather(parameter, part, self._model_group)
            if mine:
                target = targets[part.name]
                target.data = target.data + whole if part.name in filled else whole
                filled.add(part.name)
        for name, buffer in copy.named_buffers() if copy is not None else ():  # DeepSpeed's layers have more, of their own
            buffer.data = self.module.get_buffer(name).data.clone()
        return copy

    def _checked_loss(self, model: torch.nn.Module, batch: Batch) -> torch.Tensor:
        loss = self._loss(model, batch)
        _check_loss(loss)
        return loss

    def _set_lr(self, lr: float) -> None:
        for group in self._engine.optimizer.param_groups:
            group["lr"] = lr

    def _clip(self) -> torch.Tensor:
        """Clip the gradients by their global norm, which is returned. DeepSpeed keeps no norm where the optimizer is plain."""
        group = self._model_group
        norm = gradient_norm(self.module, self._parts, group, counts_whole=group is None or dist.get_rank(group) == 0)
        if self._max_norm:
            torch.nn.utils.clip_grads_with_norm_(self.module.parameters(), self._max_norm, norm)
        return norm

    @property
    def _model_group(self) -> Any:
        """The ranks that hold the model between them before ZeRO cuts it; None where each holds all of it. Not of a pipeline."""
        if self.layout.expert_parallel_size > 1:
            return group_of_experts(self.layout)
        return deepspeed_groups.get_tensor_model_parallel_group() if self.layout.tensor_parallel_size > 1 else None


def _pipeline(
    model: torch.nn.Module, layers: Layers | None, loss: Loss, layout: Layout, values: Values | None
) -> Pipeline | None:  # fmt: skip
    if layout.pipeline_parallel_size == 1:
        return None
    if layers is None:
        raise ConfigError(
            f"parallelism.pipeline_parallel_size={layout.pipeline_parallel_size} is not possible: allowed is 1, "
            "or a workload with the method layers()."
        )
    return Pipeline(model, list(layers(model)), loss, layout, values)


def _match_running_statistics(model: torch.nn.Module, dtype: torch.dtype) -> None:
    """DeepSpeed casts weights and leaves buffers (rotary frequencies need fp32); a batch norm needs both in one format."""
    for module in model.modules():
        if isinstance(module, torch.nn.modules.batchnorm._NormBase) and module.running_mean is not None:
            module.running_mean.data = module.running_mean.data.to(dtype)
            module.running_var.data = module.running_var.data.to(dtype)


def _check_images(model: torch.nn.Module) -> None:
    """Weights stay as DeepSpeed lays them out; a convolution takes its memory format from its input, and hands it on."""
    if not any(isinstance(module, torch.nn.Conv2d) for module in model.modules()):
        found = f"the model {type(model).__name__} has no two-dimensional convolution"
        raise ConfigError(f"training.channels_last=true is not possible: {found}; allowed is false.")


def _check_loss(loss: Any) -> None:
    if not torch.is_tensor(loss) or loss.dim() != 0:
        found = f"a tensor of shape {list(loss.shape)}" if torch.is_tensor(loss) else type(loss).__name__
        raise WorkloadError(f"loss() must return a scalar tensor, the mean over the batch; it returned {found}.")
