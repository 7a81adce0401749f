"""Which device a rank computes on, and telling DeepSpeed so. DeepSpeed chooses once per process, at its first import."""

from __future__ import annotations

import os

import torch

from orchestrator.errors import ConfigError

FLOAT8_MULTIPLE = 16
"""Of which a GPU wants both sizes of each factor of a product in fp8 (cuBLAS; `torch._scaled_mm`)."""


def choose_device(gpus_per_worker: float, local_rank: int) -> torch.device:
    """The rank's own GPU, or the CPU for a job without GPUs. Raises ConfigError if there is no such GPU."""
    wanted = "cuda" if gpus_per_worker else "cpu"
    os.environ["DS_ACCELERATOR"] = wanted
    _tell_deepspeed(wanted)
    if wanted == "cpu":
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise ConfigError(f"resources.gpus_per_worker={gpus_per_worker:g} is not possible: torch finds no GPU on this node.")
    index = local_rank % torch.cuda.device_count()  # where each rank sees its own GPU only, that is number 0
    torch.cuda.set_device(index)
    return torch.device("cuda", index)


def gpu_identity(device: torch.device) -> str:
    """The same after a restart of the machine, as `nvidia-smi -L` prints it."""
    return f"GPU-{torch.cuda.get_device_properties(device).uuid}"


def _tell_deepspeed(wanted: str) -> None:
    """A warm process may have imported DeepSpeed for the other kind of device."""
    from deepspeed.accelerator import get_accelerator, set_accelerator

    if get_accelerator()._name == wanted:
        return
    if wanted == "cpu":
        from deepspeed.accelerator.cpu_accelerator import CPU_Accelerator as Accelerator
    else:
        from deepspeed.accelerator.cuda_accelerator import CUDA_Accelerator as Accelerator
    set_accelerator(Accelerator())
