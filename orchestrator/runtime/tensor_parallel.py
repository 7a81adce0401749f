"""Tensor parallelism by DeepSpeed's AutoTP: its groups, and which part of which parameter a rank holds."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import deepspeed
import torch
import torch.distributed as dist
from deepspeed.checkpoint.constants import DS_AUTOTP_UC_META
from deepspeed.runtime.tensor_parallel.config import _get_hf_tp_plan
from deepspeed.utils import groups

from orchestrator.checkpoints.plan import Box
from orchestrator.errors import ConfigError
from orchestrator.layout import Layout

Shape = tuple[int, ...]
Shapes = dict[int, tuple[str, Shape]]
"""(fully qualified name, global shape) by the id of the parameter; tied weights stand once."""


@dataclass(frozen=True)
class Part:
    """What a rank holds of a parameter before ZeRO divides it further."""

    name: str
    shape: Shape
    """Of the whole parameter."""
    block: Box | None = None
    """Where this rank's part lies in it; None: the rank holds all of it."""
    lent: bool = False
    """An earlier stage of the pipeline holds and saves it too."""
    expert: bool = False
    """Of experts that are dealt out among neighbouring data-parallel ranks."""

    @property
    def held_shape(self) -> Shape:
        return self.shape if self.block is None else self.block.shape

    @property
    def num_elements(self) -> int:
        return math.prod(self.held_shape)


Parts = dict[int, Part]
"""By the id of the parameter."""


def shapes_of(model: torch.nn.Module) -> Shapes:
    """To be called before DeepSpeed gets the model: it divides the parameters in place."""
    return {id(parameter): (name, tuple(parameter.shape)) for name, parameter in model.named_parameters()}


def make_groups(model: torch.nn.Module, layout: Layout) -> Any:
    """DeepSpeed's groups of neighbouring ranks, to be given to it as `mpu`; None without tensor parallelism. All ranks together.

    Raises ConfigError for a model that does not say how to divide it: DeepSpeed would guess from the names of its layers.
    """
    size = layout.tensor_parallel_size
    if size == 1:
        return None
    if not _get_hf_tp_plan(model):
        raise ConfigError(
            f"parallelism.tensor_parallel_size={size} is not possible for the model {type(model).__name__}: "
            "allowed is 1, or a transformers model with a tensor-parallel plan, such as Llama."
        )
    deepspeed.comm.init_distributed(dist.get_backend(), dist_init_required=False)
    groups._init_tp_mesh_device(tensor_model_parallel_size=size)
    return groups


def parts_of(shapes: Shapes, model: torch.nn.Module, layout: Layout) -> Parts:
    """To be called after DeepSpeed has divided the model.

    Raises ConfigError where a rank would be left without work, or a layer is divided into more than one block per rank.
    """
    rank = layout.tensor_parallel_rank(dist.get_rank())
    notes = {id(parameter): getattr(parameter, DS_AUTOTP_UC_META, None) for parameter in model.parameters()}
    return {key: Part(name, shape, _block(name, shape, notes[key], rank)) for key, (name, shape) in shapes.items() if key in notes}


def _block(name: str, shape: Shape, note: Mapping[str, Any] | None, rank: int) -> Box | None:
    """`note`: DeepSpeed's own record of how it divided the parameter; None for one that it left whole."""
    if note is None or note["replicated"]:
        return None
    sizes, dimension = note["partition_sizes"], note["partition_dim"]
    if not sizes or dimension is None:
        raise ConfigError(f"parallelism.tensor_parallel_size is not possible: DeepSpeed divides {name} into more than one block per rank.")
    if min(sizes) == 0:
        raise ConfigError(
            f"parallelism.tensor_parallel_size={len(sizes)} is not possible: {name} {list(shape)} is divided into {list(sizes)}, which "
            "leaves a rank without work. Allowed is at most the number of the model's attention heads (key-value heads, if fewer)."
        )
    offset, held = [0] * len(shape), list(shape)
    offset[dimension], held[dimension] = sum(sizes[:rank]), sizes[rank]
    return Box(tuple(offset), tuple(held))


def exchanged_width(parts: Parts) -> int:
    """Elements per token that a group exchanges in a forward and a backward pass: for a matrix of which ranks hold rows, its inputs'
    gradients; for one of which they hold columns, its outputs.
    """
    cut = [(part.shape, part.block.shape) for part in parts.values() if part.block is not None and len(part.shape) == 2]
    return sum(shape[1] if held[0] < shape[0] else shape[0] for shape, held in cut)


def gather(parameter: torch.Tensor, part: Part, group: Any) -> torch.Tensor:
    """A whole parameter, on all ranks of `group` together, which hold its blocks. Shape `part.shape`; 0 where none holds anything."""
    if part.block is None:
        return parameter.detach().clone()
    whole = parameter.new_zeros(part.shape)
    whole[part.block.within(Box((0,) * len(part.shape), part.shape))] = parameter.detach()
    dist.all_reduce(whole, group=group)
    return whole
