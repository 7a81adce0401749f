"""Where DeepSpeed keeps the fp32 masters of the weights: one function per class of its optimizers, and the way back into the weights.

The masters lie in flat tensors, the optimizer's state beside them. `flats` says which interval of which parameter lies where.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from deepspeed.runtime.bf16_optimizer import BF16_Optimizer
from deepspeed.runtime.fp16.unfused_optimizer import FP16_UnfusedOptimizer
from deepspeed.runtime.utils import all_gather_dp_groups
from deepspeed.runtime.zero.stage3 import DeepSpeedZeroOptimizer_Stage3
from deepspeed.runtime.zero.stage_1_and_2 import DeepSpeedZeroOptimizer

from orchestrator.errors import ConfigError
from orchestrator.layout import Layout
from orchestrator.runtime.muon import Held, Matrix, Placement, owners
from orchestrator.runtime.tensor_parallel import Part, Parts

Place = Callable[[Part], tuple[int, int]]
"""A part -> (a rank's index, number) among the ranks that have it and could divide its state."""


@dataclass(frozen=True)
class Fragment:
    """Elements [start, start + length) of a rank's flattened part of a parameter lie at `offset` of a flat tensor."""

    part: Part
    start: int
    length: int
    offset: int


@dataclass(frozen=True)
class Flat:
    """One tensor of fp32 masters. `key` is what the optimizer keeps its state under."""

    key: torch.Tensor
    fragments: tuple[Fragment, ...]
    replicated: bool
    """Every rank that has these parameters and could divide them holds the same; then each saves 1/n."""

    @property
    def data(self) -> torch.Tensor:
        return self.key.detach().view(-1)


def flats(optimizer: Any, parts: Parts, place: Place) -> Iterator[Flat]:
    """In an order that is the same on all ranks. Raises ConfigError for an optimizer whose masters are not known."""
    for kind, find in _KINDS.items():
        if isinstance(optimizer, kind):
            return find(optimizer, parts, place)
    raise ConfigError(f"DeepSpeed's {type(optimizer).__name__} is not supported: its state cannot be saved.")


def _flats_of_torch(optimizer: Any, parts: Parts, place: Place) -> Iterator[Flat]:
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if parameter.requires_grad:
                yield _whole(parameter, parts[id(parameter)])


def _flats_of_16_bits_at_zero_0(optimizer: Any, parts: Parts, place: Place) -> Iterator[Flat]:
    for lows, masters in zip(optimizer.fp16_groups, optimizer.fp32_groups, strict=True):
        for low, master in zip(lows, masters, strict=True):
            yield _whole(master, parts[id(low)])


def _whole(master: torch.Tensor, part: Part) -> Flat:
    return Flat(master, (Fragment(part, 0, part.num_elements, 0),), replicated=True)


def _flats_of_zero_1_and_2(optimizer: Any, parts: Parts, place: Place) -> Iterator[Flat]:
    groups = zip(
        optimizer.round_robin_bit16_groups, optimizer.round_robin_bit16_offsets, optimizer.single_partition_of_fp32_groups, strict=True
    )
    for members, offsets, master in groups:
        yield _end_to_end([parts[id(parameter)] for parameter in members], offsets, master, place)


def _flats_of_bf16(optimizer: Any, parts: Parts, place: Place) -> Iterator[Flat]:
    """A pipeline's at ZeRO 0 in bf16, which partitions all the same."""
    for members, master in zip(optimizer.bf16_groups, optimizer.fp32_groups_flat_partition, strict=True):
        held = [parts[id(parameter)] for parameter in members]
        yield _end_to_end(held, itertools.accumulate((part.num_elements for part in held[:-1]), initial=0), master, place)


def _end_to_end(members: Sequence[Part], offsets: Iterable[int], master: torch.Tensor, place: Place) -> Flat:
    """A group's parameters lie end to end; the ranks hold equal parts of that line, the last one padded."""
    low, fragments = place(members[0])[0] * master.numel(), []
    for part, offset in zip(members, offsets, strict=True):
        first, last = max(offset, low), min(offset + part.num_elements, low + master.numel())
        if first < last:
            fragments.append(Fragment(part, first - offset, last - first, first - low))
    return Flat(master, tuple(fragments), replicated=False)


def _flats_of_zero_3(optimizer: Any, parts: Parts, place: Place) -> Iterator[Flat]:
    """Each parameter is cut into equal parts, the last one padded; a rank's parts of a group lie end to end."""
    for members, master in zip(optimizer.fp16_groups, optimizer.fp32_partitioned_groups_flat, strict=True):
        offset, fragments = 0, []
        for parameter in members:
            part = parts[id(parameter)]
            start, length = partition(parameter, place(part)[0])
            if length:
                fragments.append(Fragment(part, start, length, offset))
            offset += parameter.partition_numel()
        yield Flat(master, tuple(fragments), replicated=False)


def placements(optimizer: Any, hidden: frozenset[int], parts: Parts, layout: Layout) -> dict[torch.Tensor, Placement]:
    """Where the parts of Muon's matrices lie, by the tensor of masters that this rank holds some of."""
    names = {parts[key].name for key in hidden}
    count = layout.data_parallel_size
    by_rank = [list(flats(optimizer, parts, lambda part, rank=rank: (rank, count))) for rank in range(count)]  # type: ignore[misc]
    placed = {}
    for same in zip(*by_rank, strict=True):
        ranks, group = (same[:1], None) if same[0].replicated else (same, optimizer.dp_process_group)
        held: dict[str, list[Held]] = {}
        shapes = {}
        for rank, flat in enumerate(ranks):
            for x in flat.fragments:
                held.setdefault(x.part.name, []).append(Held(rank, x.offset, x.start, x.length))
                shapes[x.part.name] = x.part.shape
        if names.issuperset(held):
            chosen = owners([{part.rank: part.length for part in some} for some in held.values()])
            matrices = [Matrix(shapes[name], tuple(held[name]), owner) for name, owner in zip(held, chosen, strict=True)]
            placed[same[0].key] = Placement(tuple(matrices), group)
    return placed


def partition(parameter: Any, index: int) -> tuple[int, int]:
    """(first element, number of elements without padding) of a ZeRO 3 parameter that rank `index` of those that share it holds."""
    size = parameter.partition_numel()
    start = min(index * size, parameter.ds_numel)
    return start, min(size, parameter.ds_numel - start)


def refresh(optimizer: Any) -> None:
    """Masters -> the weights of the forward pass, by the same copies that DeepSpeed makes after a step."""
    if isinstance(optimizer, DeepSpeedZeroOptimizer_Stage3):
        for number in range(len(optimizer.fp16_groups)):
            swapped = optimizer._swappable_optimizer_subgroup(number)
            if swapped:
                optimizer._optimizer_states_and_gradient_swap_in(number)
            optimizer._reassign_or_swap_out_partitioned_parameters(number)
            if swapped:
                optimizer._release_swap_buffers(number)
    elif isinstance(optimizer, DeepSpeedZeroOptimizer):
        _refresh_zero_1_and_2(optimizer)
    elif isinstance(optimizer, BF16_Optimizer):
        optimizer.update_lp_params()
    elif isinstance(optimizer, FP16_UnfusedOptimizer):
        for lows, masters in zip(optimizer.fp16_groups, optimizer.fp32_groups, strict=True):
            for low, master in zip(lows, masters, strict=True):
                low.data.copy_(master.data)


def _refresh_zero_1_and_2(optimizer: Any) -> None:
    partitions, groups = optimizer.parallel_partitioned_bit16_groups, optimizer.real_dp_process_group
    for parts, master, group in zip(partitions, optimizer.single_partition_of_fp32_groups, groups, strict=True):
        parts[dist.get_rank(group=group)].data.copy_(master.data)
    all_gather_dp_groups(
        groups_flat=optimizer.bit16_groups_flat,
        partitioned_param_groups=partitions,
        dp_process_group=groups,
        start_alignment_factor=optimizer.nccl_start_alignment_factor,
        allgather_bucket_size=optimizer.allgather_bucket_size,
    )


_KINDS: dict[type, Callable[[Any, Parts, Place], Iterator[Flat]]] = {
    DeepSpeedZeroOptimizer_Stage3: _flats_of_zero_3,
    DeepSpeedZeroOptimizer: _flats_of_zero_1_and_2,
    BF16_Optimizer: _flats_of_bf16,
    FP16_UnfusedOptimizer: _flats_of_16_bits_at_zero_0,
    torch.optim.Optimizer: _flats_of_torch,
}
