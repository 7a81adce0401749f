"""Pipeline parallelism by DeepSpeed's PipelineModule: this rank's stage of a model, and the ways between the stages.

Stage s holds a run of the layers that the workload gives (`OffersLayers`). The first stage takes the samples, the last one has what
the model returns for them, so there the workload's loss and sums are computed.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import deepspeed
import torch
import torch.distributed as dist
from deepspeed.pipe import PipelineModule
from deepspeed.runtime.pipe import schedule
from torch import nn

from orchestrator.errors import WorkloadError
from orchestrator.layout import Layout
from orchestrator.runtime.chain import Chain, Held, check_chain, holdings, kinds_of, names_of, places_of, size_of
from orchestrator.runtime.gradients import gradient_norm
from orchestrator.runtime.initialise import Values
from orchestrator.runtime.link import Phase
from orchestrator.runtime.stages import cut
from orchestrator.runtime.tensor_parallel import Part, Parts

Batch = Mapping[str, torch.Tensor]
Sums = Mapping[str, torch.Tensor]
Tick = Callable[[Phase], None]

_PHASES = {
    schedule.LoadMicroBatch: Phase.DATA,
    schedule.ForwardPass: Phase.FORWARD,
    schedule.BackwardPass: Phase.BACKWARD,
    schedule.OptimizerStep: Phase.OPTIMIZER,
}
"""What else stands in the schedule is waiting for other ranks."""

_HEADER = 8  # numbers that describe an activation: number format, number of dimensions, shape


class Pipeline:
    """`module` goes to DeepSpeed, whose engine then comes to `start`. Everything is done by all ranks together."""

    def __init__(
        self, model: nn.Module, chain: Chain, loss: Callable[[nn.Module, Batch], torch.Tensor], layout: Layout,
        values: Values | None = None,
    ) -> None:  # fmt: skip
        """`chain`: the workload's `layers(model)`. Keeps this rank's layers; what else belongs to `model` is free to go.

        `values`: for a model on the meta device, of which only this rank's layers are filled.

        Raises WorkloadError for a chain that is not the model's, ConfigError for more stages than its layers can fill.
        """
        check_chain(model, chain)
        bounds = cut([size_of(layer) for layer in chain], [kinds_of(layer) for layer in chain], layout.pipeline_parallel_size)
        runs = [chain[start:end] for start, end in itertools.pairwise(bounds)]
        self._layout, self._loss = layout, loss
        self._number = layout.pipeline_stage(dist.get_rank())
        self._is_last = self._number == layout.pipeline_parallel_size - 1
        self._held = holdings(model, runs)
        self._places = places_of(runs[self._number], names_of(model))
        _refuse_shared_buffers(self._held)
        self._stage = _Stage(runs[self._number], is_first=self._number == 0, is_last=self._is_last)
        if values:
            values.fill(self._stage)
        deepspeed.comm.init_distributed(dist.get_backend(), dist_init_required=False)
        self.module = _Module(self._stage, layout, self._loss_of)
        self._ties = self._make_ties()
        self.parts: Parts = self._mark()
        """What this rank holds of which parameter."""

    def start(self, engine: Any, to_device: Callable[[Batch], Batch]) -> None:
        """`engine`: DeepSpeed's, made of `module`."""
        self._engine, self._to_device = engine, to_device
        self._plain_optimizer = isinstance(engine.optimizer, torch.optim.Optimizer)
        instructions = engine._INSTRUCTION_MAP | {schedule.ReduceTiedGrads: self._add_up_ties}
        engine._INSTRUCTION_MAP = {kind: self._told(kind, execute) for kind, execute in instructions.items()}

    @property
    def data_parallel_group(self) -> Any:
        """The ranks that hold this stage."""
        return self.module.mpu().get_data_parallel_group()

    def buffers(self) -> dict[str, torch.Tensor]:
        """This stage's persistent buffers, by global name."""
        return {name: place.tensor for name, place in self._places.items() if self._held[name].is_buffer}

    def step(self, micro_batches: Iterable[Batch], tick: Tick) -> tuple[torch.Tensor, Any]:
        """(mean loss over this data-parallel rank's samples, global norm before clipping), the same on every stage."""
        self._tick = tick
        self._engine.train_batch(self._feed(micro_batches))
        norm = self._norm if self._plain_optimizer else self._engine.get_global_grad_norm()
        return self._engine.dp_group_loss.double(), norm

    def evaluate(self, evaluate: Callable[[nn.Module, Batch], Sums], batch: Batch) -> Sums:
        """The workload's sums over a batch on the last stage, nothing on the others."""
        outcome = self._stage.run(batch if self._number == 0 else self._receive())
        if self._is_last:
            return evaluate(self._answer(outcome), batch)
        self._send(outcome)
        return {}

    @torch.no_grad()
    def whole(self, build: Callable[[], nn.Module], mine: bool, dtype: torch.dtype) -> nn.Module | None:
        """The whole model, built anew, where `mine`; tensor by tensor from the stages that hold them. `dtype`: of the weights."""
        copy = build().to(self._engine.device) if mine else None
        targets = places_of([copy], names_of(copy)) if copy is not None else {}
        for name, held in self._held.items():
            whole = torch.empty(held.shape, dtype=torch.float64 if held.is_buffer else dtype, device=self._engine.device)
            if self._number == held.stages[0]:
                whole.copy_(self._places[name].tensor)
            dist.broadcast(whole, held.stages[0] * self._layout.data_parallel_size)
            if mine and held.is_buffer:
                targets[name].tensor.copy_(whole)
            elif mine:
                targets[name].tensor.data = whole
        return copy

    # what DeepSpeed calls

    def _feed(self, micro_batches: Iterable[Batch]) -> Iterator[tuple[tuple[torch.Tensor, ...], Batch]]:
        """What the first stage computes with, and what the last one compares with. Stages in between take none."""
        for batch in micro_batches:
            there = self._to_device(batch)
            self._stage.fields = tuple(there)
            yield tuple(there.values()), there

    def _loss_of(self, outcome: Any, batch: Batch) -> torch.Tensor:
        return self._loss(self._answer(outcome), batch)

    def _answer(self, outcome: Any) -> nn.Module:
        return _Answer(outcome).train(self._stage.training)

    def _told(self, kind: Any, execute: Callable[..., None]) -> Callable[..., None]:
        """An instruction of DeepSpeed's schedule that says what it does before it does it."""

        def instruction(engine: Any, **arguments: Any) -> None:
            self._tick(_PHASES.get(kind, Phase.COLLECTIVE))
            if kind is schedule.OptimizerStep and self._plain_optimizer:
                self._norm = gradient_norm(self._stage, self.parts, self.module.mpu().get_model_parallel_group())
            execute(engine, **arguments)

        return instruction

    def _add_up_ties(self, engine: Any) -> None:
        """One sum over all that hold a tied weight, to the last bit the same for each: the copies must not part.

        DeepSpeed would add up between stages, then average over each stage's ranks, in an order that may differ from stage to stage.
        Its average comes all the same after this, and is then one of equal numbers.
        """
        for weight, group in self._ties:
            gradient = weight._hp_grad if engine.using_bf16_optimizer else weight.grad
            gradient.div_(self._layout.data_parallel_size)
            dist.all_reduce(gradient, group=group)

    # between the stages, for evaluation: DeepSpeed's ways know one shape only

    def _send(self, activation: torch.Tensor) -> None:
        numbers = [self._engine.DTYPE_TO_ID[activation.dtype], activation.dim(), *activation.shape]
        header = torch.tensor(numbers + [0] * (_HEADER - len(numbers)), device=activation.device)
        for tensor in (header, activation.contiguous()):
            dist.send(tensor, dist.get_rank() + self._layout.data_parallel_size)

    def _receive(self) -> torch.Tensor:
        source = dist.get_rank() - self._layout.data_parallel_size
        header = torch.empty(_HEADER, dtype=torch.int64, device=self._engine.device)
        dist.recv(header, source)
        code, dimensions, *shape = header.tolist()
        activation = torch.empty(shape[:dimensions], dtype=self._engine.ID_TO_DTYPE[code], device=self._engine.device)
        dist.recv(activation, source)
        return activation

    # what lies where

    def _make_ties(self) -> list[tuple[Any, Any]]:
        """Weights of this stage that other stages train too, each with the group of all ranks that hold it."""
        ties, size = [], self._layout.data_parallel_size
        shared = {name: held.stages for name, held in self._held.items() if len(held.stages) > 1}
        for name, stages in shared.items():
            group = dist.new_group([stage * size + data_rank for stage in stages for data_rank in range(size)])
            if self._number in stages and self._places[name].tensor.requires_grad:
                ties.append((self._places[name].tensor, group))
        return ties

    def _mark(self) -> Parts:
        """Tell DeepSpeed which gradients a norm over all stages counts here: each weight's once, where it is saved.

        Its three kinds of optimizer look at one or the other of the two marks.
        """
        parts = {}
        for name, place in self._places.items():
            held, weight = self._held[name], place.tensor
            if not held.is_buffer:
                parts[id(weight)] = part = Part(name, held.shape, lent=held.stages[0] != self._number)
                weight.ds_pipe_replicated, weight.model_parallel = part.lent, not part.lent
        return parts


class _Stage(nn.Module):  # type: ignore[misc]
    """This rank's layers."""

    def __init__(self, layers: Sequence[nn.Module], is_first: bool, is_last: bool) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.fields: tuple[str, ...] = ()
        """Of a batch, in the order in which DeepSpeed hands its tensors on."""
        self._is_first, self._is_last = is_first, is_last

    def forward(self, given: Any) -> Any:
        return self.run(dict(zip(self.fields, given, strict=True)) if self._is_first else given)

    def run(self, given: Any) -> Any:
        """`given`: a batch on the first stage, else what the stage before returned."""
        for layer in self.layers:
            given = layer(given)
        if not (self._is_last or torch.is_tensor(given)):
            found = f"{type(layer).__name__} returned {type(given).__name__}"
            raise WorkloadError(f"each of layers() but the last one must return a tensor; {found}.")
        return given


class _Module(PipelineModule):  # type: ignore[misc]
    """To DeepSpeed each stage is one layer; those of other ranks are names only, so that no rank keeps the whole model."""

    def __init__(self, stage: _Stage, layout: Layout, loss: Callable[[Any, Batch], torch.Tensor]) -> None:
        number, count = layout.pipeline_stage(dist.get_rank()), layout.pipeline_parallel_size
        layers = [stage if place == number else _elsewhere for place in range(count)]
        super().__init__(layers, num_stages=count, loss_fn=loss, partition_method="uniform")


def _elsewhere(given: Any) -> Any:
    raise NotImplementedError("this stage is computed by other ranks")


class _Answer(nn.Module):  # type: ignore[misc]
    """Stands for the model where the stages have computed already what it returns."""

    def __init__(self, outcome: Any) -> None:
        super().__init__()
        self._outcome = [outcome]

    def forward(self, *_: Any, **__: Any) -> Any:
        if not self._outcome:
            raise WorkloadError("parallelism.pipeline_parallel_size > 1: loss() and evaluate() may call the model once for each batch.")
        return self._outcome.pop()


def _refuse_shared_buffers(held: Mapping[str, Held]) -> None:
    for name, tensor in held.items():
        if tensor.is_buffer and len(tensor.stages) > 1:
            raise WorkloadError(f"layers() of different stages share the buffer {name}, which each would change for itself.")
