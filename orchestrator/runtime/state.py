"""Training state in and out of a DeepSpeed engine, whatever its ZeRO stage, as pieces of global tensors.

`masters.flats` says which interval of which parameter lies where; everything here is the same for all stages. Call only at an
optimizer step's boundary.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from deepspeed.runtime.fp16.unfused_optimizer import FP16_UnfusedOptimizer
from deepspeed.runtime.zero.stage3 import DeepSpeedZeroOptimizer_Stage3

from orchestrator.checkpoints.pieces import StatePiece
from orchestrator.layout import Layout
from orchestrator.runtime.masters import Flat, flats, partition, placements, refresh
from orchestrator.runtime.muon import Muon
from orchestrator.runtime.optimizer_state import element_wise, ensure_state, statistics
from orchestrator.runtime.pipeline import Pipeline
from orchestrator.runtime.swapped import SwappedState
from orchestrator.runtime.tensor_parallel import Part, Parts

_SCALER_FIELDS = ("cur_scale", "cur_iter", "last_overflow_iter", "cur_hysteresis")


class EngineState:
    """The state of one rank's engine. `parts`: what it holds of each parameter before ZeRO divides it; `pipeline`: its stage of one."""

    def __init__(self, engine: Any, parts: Parts, layout: Layout, pipeline: Pipeline | None = None) -> None:
        self._engine = engine
        self._parts = parts
        self._layout = layout
        self._pipeline = pipeline
        self._data_rank = layout.sequence_data_parallel_rank(dist.get_rank())
        self._optimizer = engine.optimizer
        self._torch_optimizer = getattr(self._optimizer, "optimizer", self._optimizer)
        self._swapped = SwappedState(self._optimizer)
        self._incoming: list[tuple[StatePiece, torch.Tensor]] = []
        self.beside: dict[str, dict[int, torch.Tensor]] = {}
        """By role: what else is saved and restored for each tensor of `masters`, of its shape, under its key."""
        if isinstance(self._optimizer, FP16_UnfusedOptimizer):
            self._undo_first_step()
        if isinstance(self._torch_optimizer, Muon):
            self._torch_optimizer.place(placements(self._optimizer, self._torch_optimizer.hidden, parts, layout))

    def owned_pieces(self) -> list[StatePiece]:
        """What this rank saves of what training changes: over all ranks every element once."""
        held = [(piece, part, flat.replicated) for flat in self._flats() for piece, part in self._pieces(flat, with_lent=False)]
        buffers = self._shares((piece, part, True) for piece, _, part in self._persistent_buffers())
        return self._shares(held) + [replace(piece, data=piece.data.clone()) for piece in buffers]  # a forward pass changes them

    def constant_pieces(self) -> list[StatePiece]:
        """What this rank saves of the frozen parameters, which no step changes: they lie where the model has them."""
        return self._shares((piece, part, replicated) for piece, _, part, replicated in self._frozen_parameters(with_lent=False))

    def wanted_pieces(self) -> list[StatePiece]:
        """All that this rank holds, to be filled in place; then call `after_restore`."""
        beside = [(piece, target) for piece, target, *_ in self._frozen_parameters()]
        beside += [(piece, target) for piece, target, _ in self._persistent_buffers()]
        self._incoming = [(piece, target) for piece, target in beside if not target.is_contiguous()]
        return self.trained_pieces() + [piece for piece, _ in beside if piece.data.numel()]

    def trained_pieces(self) -> list[StatePiece]:
        """Of the trained parameters and the optimizer's state, what this rank holds."""
        held = [piece for flat in self._flats() for piece, _ in self._pieces(flat)]
        return [piece for piece in held if piece.data.numel()]

    def masters(self) -> dict[int, torch.Tensor]:
        """The fp32 weights that this rank holds, flat and with their padding, by the id of what the optimizer keeps their state under."""
        return {id(flat.key): flat.data for flat in flats(self._optimizer, self._parts, self._place)}

    def after_restore(self) -> None:
        """What `wanted_pieces` was filled with goes to where the model computes with it. All ranks together."""
        incoming, self._incoming = self._incoming, []
        self.refresh(incoming)

    @torch.no_grad()
    def refresh(self, incoming: Sequence[tuple[StatePiece, torch.Tensor]] = ()) -> None:
        """Masters -> the weights that the model computes with. All ranks together."""
        sharded = isinstance(self._optimizer, DeepSpeedZeroOptimizer_Stage3)
        if sharded:
            self._optimizer.checkpoint_event_prologue()  # weights that are kept whole are taken apart
        for piece, target in incoming:
            target.copy_(piece.data.view(target.shape))
        self._swapped.flush()
        refresh(self._optimizer)
        if sharded:
            for parameter in self._engine.module.parameters():
                parameter.ds_secondary_tensor = None  # ZeRO++'s second copy; DeepSpeed's own call leaves those of frozen weights
            self._optimizer.checkpoint_event_epilogue()

    def counters(self) -> dict[str, Any]:
        """Job scalars of the engine: step counters, loss scale. JSON-ready."""
        return {
            "optimizer_steps": self._steps(),
            "loss_scale": self.loss_scale(),
            "skipped": int(self._engine.skipped_steps),
            "global_steps": int(self._engine.global_steps),
            "global_samples": int(self._engine.global_samples) // self._layout.sequence_parallel_size,
        }

    def set_counters(self, counters: Mapping[str, Any]) -> None:
        """The inverse of `counters`."""
        steps = counters["optimizer_steps"]
        for flat in self._flats():
            name = flat.fragments[0].part.name if flat.fragments else ""
            state = self._torch_optimizer.state[flat.key]
            if "step" in state:
                state["step"].fill_(steps["by_name"].get(name, steps["default"]))
        for scaler in _scalers(self._optimizer):
            for field, value in counters["loss_scale"].items():
                setattr(scaler, field, value)
        self._engine.skipped_steps = counters["skipped"]
        self._engine.global_steps = counters["global_steps"]
        self._engine.global_samples = counters["global_samples"] * self._layout.sequence_parallel_size
        self._engine.micro_steps = counters["global_steps"] * self._engine.gradient_accumulation_steps()

    def loss_scale(self) -> dict[str, Any]:
        """Fields of the object that holds a loss scale that changes; empty where there is none."""
        return {field: getattr(scaler, field) for scaler in _scalers(self._optimizer) for field in _SCALER_FIELDS if hasattr(scaler, field)}

    def average_buffers(self) -> None:
        """Buffers that the ranks' batches moved apart (running means) become their mean; equal ones keep every bit."""
        group = self._pipeline.data_parallel_group if self._pipeline else dist.group.WORLD
        for _, buffer in self._buffers():
            if self._layout.world_size > 1 and buffer.is_floating_point():
                total = buffer.detach().to(torch.float64)
                dist.all_reduce(total, group=group)
                buffer.copy_(total / dist.get_world_size(group))

    def _flats(self) -> list[Flat]:
        found = list(flats(self._optimizer, self._parts, self._place))
        for flat in found:
            make = partial(ensure_state, self._torch_optimizer, flat.key)
            if self._swapped.holds(flat.key):
                self._swapped.ensure_state(flat.key, make)
            else:
                make()
        return found

    def _place(self, part: Part) -> tuple[int, int]:
        """(this rank's index, number) of the ranks that have `part` and could divide its state: all, or those with the same experts."""
        group = self._layout.expert_parallel_size if part.expert else 1
        return self._data_rank // group, self._layout.sequence_data_parallel_size // group

    def _pieces(self, flat: Flat, with_lent: bool = True) -> Iterator[tuple[StatePiece, Part]]:
        if self._swapped.holds(flat.key):
            tensors = self._swapped.tensors(flat.key)
        else:
            tensors = {"param": flat.data, **element_wise(self._torch_optimizer.state[flat.key], flat.key)}
        tensors |= {role: held[id(flat.key)] for role, held in self.beside.items()}
        for fragment in flat.fragments:
            for role, tensor in tensors.items() if with_lent or not fragment.part.lent else ():
                mine = tensor[fragment.offset : fragment.offset + fragment.length]
                yield _piece(fragment.part, role, fragment.start, mine), fragment.part
        for role, tensor in statistics(self._torch_optimizer.state[flat.key], flat.key).items():
            (fragment,) = flat.fragments  # Adafactor's, at ZeRO 0
            part = Part(fragment.part.name, tuple(tensor.shape))
            yield _piece(part, role, 0, tensor.view(-1)), part

    def _frozen_parameters(self, with_lent: bool = True) -> Iterator[tuple[StatePiece, torch.Tensor, Part, bool]]:
        """(all of it, its tensor, part, replicated)."""
        for parameter in self._engine.module.parameters():
            if not parameter.requires_grad and (with_lent or not self._parts[id(parameter)].lent):
                yield self._frozen(parameter)

    def _persistent_buffers(self) -> Iterator[tuple[StatePiece, torch.Tensor, Part]]:
        """(all of it, its tensor, part)."""
        for name, buffer in self._buffers():
            part = Part(name, tuple(buffer.shape))
            yield _untrained(part, "buffer", 0, buffer), buffer, part

    def _buffers(self) -> Iterable[tuple[str, torch.Tensor]]:
        return self._pipeline.buffers().items() if self._pipeline else _buffers(self._engine.module)

    def _frozen(self, parameter: Any) -> tuple[StatePiece, torch.Tensor, Part, bool]:
        part = self._parts[id(parameter)]
        if not hasattr(parameter, "ds_tensor"):
            return _untrained(part, "param", 0, parameter), parameter.detach(), part, True
        start, length = partition(parameter, self._place(part)[0])
        mine = parameter.ds_tensor.detach()[:length]
        return _untrained(part, "param", start, mine), mine, part, False

    def _shares(self, held: Iterable[tuple[StatePiece, Part, bool]]) -> list[StatePiece]:
        """Of each piece the interval that this rank saves; the flag: other ranks hold it too."""
        cut = [self._share(piece, *(self._place(part) if replicated else (0, 1))) for piece, part, replicated in held]
        return [piece for piece in cut if piece.data.numel()]

    def _share(self, piece: StatePiece, index: int, copies: int) -> StatePiece:
        """The interval that this rank saves of a piece, of which there are `copies` in ranks with other samples or positions, its own
        being number `index`. The ranks of a tensor-parallel group hold the same where the piece is of a whole tensor."""
        if piece.block is None:
            together = self._layout.tensor_parallel_size
            index, copies = index * together + self._layout.tensor_parallel_rank(dist.get_rank()), copies * together
        count = piece.data.numel()
        low, high = count * index // copies, count * (index + 1) // copies
        return replace(piece, start=piece.start + low, data=piece.data[low:high])

    def _steps(self) -> dict[str, Any]:
        """The optimizer's own step counter; parameters that never got a gradient stay behind and are named."""
        states = [(flat, self._torch_optimizer.state[flat.key].get("step")) for flat in self._flats()]
        counted = [(flat, int(step)) for flat, step in states if step is not None]
        default = max((step for _, step in counted), default=0)
        return {"default": default, "by_name": {x.part.name: step for flat, step in counted if step != default for x in flat.fragments}}

    def _undo_first_step(self) -> None:
        """DeepSpeed's unfused optimizer makes its state by a step without gradients, which decays weights and counts."""
        self._torch_optimizer.state.clear()
        for lows, masters in zip(self._optimizer.fp16_groups, self._optimizer.fp32_groups, strict=True):
            for low, master in zip(lows, masters, strict=True):
                master.data.copy_(low.data)


def _scalers(optimizer: Any) -> list[Any]:
    """The object that holds the loss scale, where there is one that changes."""
    found = [getattr(optimizer, name, None) for name in ("loss_scaler", "loss_scale_config")]
    return [scaler for scaler in found if getattr(scaler, "dynamic", False) or getattr(scaler, "dynamic_loss_scale", False)]


def _buffers(module: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Persistent buffers by fully qualified name, each once."""
    seen: set[int] = set()
    for prefix, owner in module.named_modules():
        for name, buffer in owner.named_buffers(recurse=False):
            if name not in owner._non_persistent_buffers_set and id(buffer) not in seen and buffer.numel():
                seen.add(id(buffer))
                yield f"{prefix}.{name}".lstrip("."), buffer


def _piece(part: Part, role: str, start: int, data: torch.Tensor) -> StatePiece:
    return StatePiece(name=part.name, role=role, global_shape=part.shape, start=start, data=data, block=part.block)


def _untrained(part: Part, role: str, start: int, source: torch.Tensor) -> StatePiece:
    """Of what has no fp32 master, in the memory of `source` unless that is not contiguous; a checkpoint keeps fractions as fp32."""
    piece = _piece(part, role, start, source.detach().contiguous().view(-1))
    return replace(piece, kept_as=torch.float32 if source.is_floating_point() else None)
