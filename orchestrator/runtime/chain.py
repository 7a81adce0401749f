"""A model as the chain of layers that its workload cuts it into: which tensor is where, under its global name."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from orchestrator.errors import WorkloadError
from orchestrator.runtime.stages import Kinds

Chain = Sequence[nn.Module]


@dataclass(frozen=True)
class Held:
    """A parameter or persistent buffer in a pipeline."""

    shape: tuple[int, ...]
    stages: tuple[int, ...]
    """Who computes with it, ascending. The first one saves it."""
    is_buffer: bool


@dataclass(frozen=True)
class Place:
    """An attribute of a module. What stands there may be replaced, by a cast or a move to a device."""

    owner: nn.Module
    attribute: str

    @property
    def tensor(self) -> torch.Tensor:
        found: torch.Tensor = getattr(self.owner, self.attribute)
        return found


def names_of(model: nn.Module) -> dict[int, str]:
    """Global names of parameters and persistent buffers, by their ids; tied ones stand once."""
    found: dict[int, str] = {}
    for prefix, owner in model.named_modules():
        for name, tensor in _own(owner):
            found.setdefault(id(tensor), f"{prefix}.{name}".lstrip("."))
    return found


def check_chain(model: nn.Module, chain: Chain) -> None:
    """Raises WorkloadError unless the chain holds what the model holds."""
    if not all(isinstance(layer, nn.Module) for layer in chain):
        raise WorkloadError("layers() must return torch.nn.Modules.")
    names, held = names_of(model), {id(tensor) for _, _, tensor in _tensors(chain)}
    missing = [name for key, name in names.items() if key not in held]
    if missing:
        raise WorkloadError(f"layers() leaves out {', '.join(missing[:3])} ({len(missing)} in all) of the model.")
    if held - names.keys():
        strange = next(f"{type(owner).__name__}.{name}" for owner, name, tensor in _tensors(chain) if id(tensor) not in names)
        raise WorkloadError(f"layers() brings {strange}, which is not of the model: {len(held - names.keys())} tensors in all.")


def holdings(model: nn.Module, runs: Sequence[Chain]) -> dict[str, Held]:
    """Of all stages, by global name in the order of the model. `runs`: the layers of each stage."""
    stages: dict[int, list[int]] = {}
    for number, run in enumerate(runs):
        for key in {id(tensor) for _, _, tensor in _tensors(run)}:
            stages.setdefault(key, []).append(number)
    tensors = {id(tensor): tensor for _, _, tensor in _tensors([model])}
    return {
        name: Held(tuple(tensors[key].shape), tuple(stages[key]), not isinstance(tensors[key], nn.Parameter))
        for key, name in names_of(model).items()
    }


def places_of(layers: Iterable[nn.Module], names: dict[int, str]) -> dict[str, Place]:
    """Where the layers' tensors are, by global name."""
    found: dict[str, Place] = {}
    for owner, name, tensor in _tensors(layers):
        found.setdefault(names[id(tensor)], Place(owner, name))
    return found


def size_of(layer: nn.Module) -> int:
    return sum(parameter.numel() for parameter in layer.parameters())


def kinds_of(layer: nn.Module) -> Kinds:
    """The engine's parameter groups that the layer has a part in."""
    return Kinds("matrices" if parameter.dim() > 1 else "vectors" for parameter in layer.parameters() if parameter.requires_grad)


def _tensors(layers: Iterable[nn.Module]) -> Iterator[tuple[nn.Module, str, torch.Tensor]]:
    for layer in layers:
        for owner in layer.modules():
            for name, tensor in _own(owner):
                yield owner, name, tensor


def _own(owner: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    yield from owner.named_parameters(recurse=False)
    for name, buffer in owner.named_buffers(recurse=False):
        if name not in owner._non_persistent_buffers_set and buffer.numel():
            yield name, buffer
