"""Masters and optimizer state that DeepSpeed keeps in files (ZeRO 3, `offload_optimizer=nvme`), as tensors over those files.

Between steps DeepSpeed's own tensors of such a sub-group are empty, and its files hold all: the masters, and one file for each tensor
of the optimizer's state that is as large. What is read or written here goes through the kernel's cache, so that a checkpoint needs
no memory for it; DeepSpeed reads and writes past that cache, which the kernel keeps in step with the disk.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import torch
from deepspeed.runtime.zero.stage3 import DeepSpeedZeroOptimizer_Stage3


class SwappedState:
    """The sub-groups of an optimizer that lie in files; none, unless it is of ZeRO 3 and swaps. Only between steps."""

    def __init__(self, optimizer: Any) -> None:
        self._optimizer = optimizer
        swaps = isinstance(optimizer, DeepSpeedZeroOptimizer_Stage3) and optimizer.swap_optimizer
        masters = optimizer.fp32_partitioned_groups_flat if swaps else ()
        self._numbers = {id(key): number for number, key in enumerate(masters) if optimizer._swappable_optimizer_subgroup(number)}
        self._begun: set[int] = set()

    def holds(self, key: torch.Tensor) -> bool:
        """Whether the masters `key` and their state lie in files."""
        return id(key) in self._numbers

    def ensure_state(self, key: torch.Tensor, make: Callable[[], None]) -> None:
        """`make` fills in the optimizer's state where a first step has not, while the masters are in memory."""
        if id(key) in self._begun or self._optimizer.optimizer.state.get(key):
            return
        number = self._numbers[id(key)]
        self._optimizer._optimizer_states_and_gradient_swap_in(number)
        make()
        self._optimizer._optimizer_states_and_gradient_swap_out(number)
        self._begun.add(id(key))

    def tensors(self, key: torch.Tensor) -> dict[str, torch.Tensor]:
        """Role -> the file as a flat tensor; what is written to it is written to the file."""
        size = self._optimizer.fp16_partitioned_groups_flat_numel[self._numbers[id(key)]]
        state = self._optimizer.optimizer.state.get(key, {})
        roles = {id(key): "param"} | {id(value): role for role, value in state.items()}
        return {
            roles[id(held.compute_tensor)]: torch.from_file(held.swap_path, shared=True, size=size, dtype=key.dtype)
            for held in self._optimizer.optimizer_swapper.swap_params_info[key.ds_id].tensors
        }

    def flush(self) -> None:
        """What was written to the tensors is on the disk, where DeepSpeed reads it."""
        for key in self._optimizer.fp32_partitioned_groups_flat if self._numbers else ():
            for held in self._optimizer.optimizer_swapper.swap_params_info[key.ds_id].tensors if self.holds(key) else ():
                descriptor = os.open(held.swap_path, os.O_RDONLY)
                os.fsync(descriptor)
                os.close(descriptor)
