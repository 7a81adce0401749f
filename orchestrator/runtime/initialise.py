"""Values for a model that was built on the meta device, where tensors have shapes only: module by module, so that it never stands whole.

A tensor belongs to the first module that holds it. Its values depend on the job's seed and that module's name, so they are the same to the
last bit whichever modules a rank fills, and in which order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import deepspeed
import torch
import torch.distributed as dist
from deepspeed.utils import groups
from torch import nn

from orchestrator.errors import WorkloadError
from orchestrator.layout import Layout
from orchestrator.runtime.seeding import seed_model, seed_module
from orchestrator.workload import DatasetView, Initialise, Workload

Settle = Callable[[list[nn.Parameter]], None]
"""Takes a module's own parameters, which have their values, to where they stay."""


def build_model(workload: Workload, dataset: DatasetView, seed: int) -> tuple[nn.Module, Initialise | None]:
    """The workload's model; on the meta device if it offers `initialise`, which then comes with it. WorkloadError for no model."""
    initialise: Initialise | None = getattr(workload, "initialise", None)
    seed_model(seed)
    with torch.device("meta") if initialise else nullcontext():
        model = workload.build_model(dataset)
    if not isinstance(model, nn.Module):
        raise WorkloadError(f"build_model() must return a torch.nn.Module; it returned {type(model).__name__}.")
    return model, initialise


def build_whole(workload: Workload, dataset: DatasetView, seed: int, device: torch.device, dtype: torch.dtype) -> nn.Module:
    """A copy for one rank alone, whose parameters others are to replace."""
    model, initialise = build_model(workload, dataset, seed)
    if initialise:
        Values(model, initialise, seed, device, dtype).fill(model)
    return model


class Values:
    """What fills a model, on this rank's device. Parameters are cast as soon as they have their fp32 values, as DeepSpeed would; buffers
    stay as they are."""

    def __init__(self, model: nn.Module, initialise: Initialise, seed: int, device: torch.device, dtype: torch.dtype) -> None:
        self._model, self._initialise, self._seed = model, initialise, seed
        self._device, self._dtype = device, dtype

    @torch.no_grad()
    def fill(self, part: nn.Module, settle: Settle | None = None) -> None:
        """All that `part` holds of the model. `settle` is called for each module before the next one is begun."""
        needed = {id(tensor) for module in part.modules() for tensor in _own(module).values()}
        shapes: dict[int, torch.Size] = {}
        for name, module in self._model.named_modules():
            held = _own(module)
            fresh = [tensor for tensor in held.values() if id(tensor) not in shapes]
            others = {key: shapes[id(tensor)] for key, tensor in held.items() if id(tensor) in shapes}
            shapes |= {id(tensor): tensor.shape for tensor in fresh}
            if any(id(tensor) in needed for tensor in fresh):
                self._fill_module(name, module, fresh, others, settle)

    def _fill_module(
        self, name: str, module: nn.Module, fresh: list[torch.Tensor], others: dict[str, torch.Size], settle: Settle | None
    ) -> None:
        for tensor in fresh:
            _allocate(tensor, self._device)
        seed_module(self._seed, name, self._device)
        with _stand_ins(module, others, self._device):
            self._initialise(self._model, name, module)
        parameters = [tensor for tensor in fresh if isinstance(tensor, nn.Parameter)]
        for parameter in parameters:
            if parameter.is_floating_point():
                parameter.data = parameter.data.to(self._dtype)
        if settle and parameters:
            settle(parameters)


def partition_at_once(layout: Layout, config: dict[str, Any]) -> Settle | None:
    """At ZeRO 3, what divides parameters among the ranks as `config`, DeepSpeed's dict, says; all ranks together, in the same order.

    None where they stay whole until DeepSpeed has the model: below ZeRO 3, and where it deals out or divides whole modules first.
    """
    if layout.zero_stage < 3 or layout.tensor_parallel_size > 1 or layout.expert_parallel_size > 1:
        return None
    deepspeed.comm.init_distributed(dist.get_backend(), dist_init_required=False)
    divided: list[Any] = []

    def divide(parameters: list[nn.Parameter]) -> None:
        if divided:
            divided[0].convert_to_zero_parameters(param_list=parameters)
            return
        second_copies = groups._get_zero_param_intra_parallel_group()  # None until ZeRO++ has been set up in this process
        deepspeed.zero.Init(nn.ParameterList(parameters), config_dict_or_path=config, zero_param_parallel_group=second_copies)
        divided.append(parameters[0])

    return divide


def _allocate(tensor: torch.Tensor, device: torch.device) -> None:
    """Memory for a tensor without values, NaN or 0 until it has them; it stays the same object for all that hold it."""
    if not tensor.is_meta:
        tensor.data = tensor.data.to(device)
        return
    empty = torch.full(tensor.shape, torch.nan if tensor.is_floating_point() else 0, dtype=tensor.dtype, device=device)
    if isinstance(tensor, nn.Parameter):
        empty = nn.Parameter(empty, tensor.requires_grad)
    empty.__dict__.update(tensor.__dict__)  # which are exchanged, too
    torch.utils.swap_tensors(tensor, empty)


@contextmanager
def _stand_ins(module: nn.Module, shapes: dict[str, torch.Size], device: torch.device) -> Iterator[None]:
    """Inside, `module` has others in the place of the tensors that belong to a module before it, which may have settled already."""
    kept = {key: (table, table[key]) for key in shapes for table in (module._parameters, module._buffers) if key in table}
    for key, (table, tensor) in kept.items():
        other = torch.empty(shapes[key], dtype=tensor.dtype, device=device)
        table[key] = nn.Parameter(other, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else other
    try:
        yield
    finally:
        for key, (table, tensor) in kept.items():
            table[key] = tensor


def _own(module: nn.Module) -> dict[str, torch.Tensor]:
    return {key: tensor for table in (module._parameters, module._buffers) for key, tensor in table.items() if tensor is not None}
