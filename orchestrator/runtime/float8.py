"""Products of matrices in fp8, by torchao, for the linear layers inside a model (Micikevicius et al. 2022, arXiv:2209.05433).

Weights, activations and gradients stay in bf16 and are scaled and rounded to 8 bits for each product: e4m3 (by tensor, gradients e5m2).
Names and shapes of parameters stay as they are, so a checkpoint does not know of it.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from orchestrator.errors import ConfigError
from orchestrator.runtime.accelerator import FLOAT8_MULTIPLE
from orchestrator.runtime.muon import hidden_matrices
from orchestrator.spec import Float8, TrainingSpec

_LEAST_CAPABILITY = (8, 9)  # Ada; Hopper is 9.0


def multiply_in_float8(model: nn.Module, asked: TrainingSpec, device: torch.device) -> None:
    """To be called before DeepSpeed gets the model. Raises ConfigError where torchao, the device or the model cannot."""
    if asked.float8 is Float8.none:
        return
    if not asked.float8_emulated:
        check_capability(torch.cuda.get_device_capability(device) if device.type == "cuda" else None)
    convert, linear, config = _torchao(asked)
    layers = set(suitable_layers(model))
    if not layers:
        wanted = f"trained nn.Linear beside its head with sizes that are multiples of {FLOAT8_MULTIPLE}"
        raise _refused(asked, f"the model {type(model).__name__} has no {wanted}")
    convert(model, module_filter_fn=lambda layer, _: layer in layers, config=config)
    for module in model.modules():
        if type(module) is linear.__base__:
            module.__class__ = linear


def suitable_layers(model: nn.Module) -> list[nn.Module]:
    """Linear layers that are trained, of sizes that a GPU multiplies in fp8; without the head, whose rounding the loss would feel."""
    inner = hidden_matrices(model)
    linear = [module for module in model.modules() if type(module) is nn.Linear]
    trained = [layer for layer in linear if layer.weight.requires_grad and id(layer.weight) in inner]
    return [layer for layer in trained if not any(size % FLOAT8_MULTIPLE for size in layer.weight.shape)]


def check_capability(found: tuple[int, int] | None) -> None:
    """`found`: the GPU's compute capability; None without a GPU. Raises ConfigError if it does not multiply in fp8."""
    if found is None or found < _LEAST_CAPABILITY:
        device = "a CPU" if found is None else f"a GPU of compute capability {found[0]}.{found[1]}"
        wanted = ".".join(map(str, _LEAST_CAPABILITY))
        raise ConfigError(
            f"training.float8_emulated=false is not possible: {device} does not multiply in fp8, which takes at least {wanted}; "
            "allowed is true, or training.float8=none."
        )


def _torchao(asked: TrainingSpec) -> tuple[Any, type[nn.Module], Any]:
    """(what swaps layers, the class they get, how they round). torchao is imported here, because few jobs need it: it takes a second."""
    logging.getLogger("torchao").setLevel(logging.ERROR)  # it warns of each kernel for other devices that it does not load
    try:
        from torchao.float8 import Float8LinearConfig, convert_to_float8_training

        from orchestrator.runtime.float8_linear import Linear
    except ImportError as error:
        found = f"torchao cannot be imported where the ranks run ({error}); it comes with pip install 'orchestrator[float8]'"
        raise _refused(asked, found) from error
    config = replace(Float8LinearConfig.from_recipe_name(asked.float8.value), emulate=asked.float8_emulated)
    return convert_to_float8_training, Linear, config


def _refused(asked: TrainingSpec, found: str) -> ConfigError:
    return ConfigError(f"training.float8={asked.float8.value} is not possible: {found}; allowed is none.")
