"""torch.compile of a model under DeepSpeed.

At ZeRO 0 to 2 the whole model is compiled. At ZeRO 3 DeepSpeed gathers parameters by hooks on every layer, which would break the graph at
each; so there whole blocks are gathered at once, and what lies between their hooks is compiled. Both ways change no parameter's name.
"""

from __future__ import annotations

import os
import shutil
from typing import Any

import deepspeed
import torch
from torch import nn

from orchestrator.errors import ConfigError
from orchestrator.layout import Layout
from orchestrator.runtime.recompute import blocks_of
from orchestrator.spec import CompileBackend, TrainingSpec


def compile_blocks(model: nn.Module, asked: TrainingSpec, layout: Layout) -> None:
    """At ZeRO 3. To be called before DeepSpeed gets the model, after `checkpoint_activations`. Raises ConfigError if it cannot be."""
    if not asked.compile:
        return
    _check_compiler(asked.compile_backend)
    if layout.zero_stage < 3:
        return
    blocks = list(blocks_of(model))
    if not blocks:
        found = f"the model {type(model).__name__} has no blocks (members of an nn.ModuleList), which are what is compiled at ZeRO 3"
        raise ConfigError(f"training.compile=true is not possible: {found}; allowed is false, or parallelism.zero_stage=0, 1 or 2.")
    for block in blocks:
        deepspeed.utils.set_z3_leaf_module(block, True)
        block.forward = torch.compile(block.forward, backend=asked.compile_backend.value)


def compile_model(engine: Any, asked: TrainingSpec, layout: Layout) -> None:
    """At ZeRO 0 to 2; `engine` is DeepSpeed's."""
    if asked.compile and layout.zero_stage < 3:
        engine.compile(backend=asked.compile_backend.value)


def _check_compiler(backend: CompileBackend) -> None:
    """inductor writes C++ for a CPU, and for a GPU calls Triton, which builds its launcher in C."""
    if backend is not CompileBackend.inductor:
        return
    wanted = [os.environ.get("CXX", ""), "g++", "clang++", "c++"]
    if not any(name and shutil.which(name) for name in wanted):
        raise ConfigError(
            "training.compile=true is not possible: no C++ compiler (CXX, g++, clang++ or c++) is on this node's PATH; "
            "install one, or choose training.compile=false."
        )
