"""DeepSpeed's ops, compiled at set-up and only loaded in front of a first step: compiling takes minutes. Once per node, for jobs that

    keep state on a disk (`offload_optimizer=nvme`):    python -m orchestrator.runtime.ops async_io
    exchange 8 and 4 bits (`zero_quantized_...`):       python -m orchestrator.runtime.ops quantizer

No other job needs one.
"""

from __future__ import annotations

import argparse
import importlib.util
from pathlib import Path
from types import ModuleType

from orchestrator.errors import ConfigError
from orchestrator.spec import Offload, ParallelismSpec

NEEDS = {"async_io": "libaio's headers (Debian: libaio-dev), a C++ compiler and ninja", "quantizer": "CUDA's compiler (nvcc) and ninja"}


def needed(parts: ParallelismSpec) -> dict[str, str]:
    """Op -> the flag that needs it."""
    found = {}
    if parts.offload_optimizer is Offload.nvme:
        found["async_io"] = "parallelism.offload_optimizer=nvme"
    for name in ("zero_quantized_weights", "zero_quantized_gradients"):
        if getattr(parts, name):
            found["quantizer"] = f"parallelism.{name}=true"
    return found


def load_op(name: str, flag: str) -> None:
    """Give DeepSpeed its op as it was compiled at set-up. Raises ConfigError, naming the `flag` that needs it, where it was not.

    DeepSpeed's own loader asks the compiler each time, compiles for minutes what is not there, and waits for ever behind the lock of a
    rank that was killed in it.
    """
    from deepspeed.git_version_info import installed_ops
    from deepspeed.ops.op_builder import PinMemoryBuilder
    from deepspeed.ops.op_builder.builder import OpBuilder

    if installed_ops.get(name, False) or name in OpBuilder._loaded_ops:
        return
    if name == "async_io":
        OpBuilder._loaded_ops["pin_memory"] = _compiled("pin_memory", name, flag)
        PinMemoryBuilder().load()  # makes its symbols known to the other
    OpBuilder._loaded_ops[name] = _compiled(name, name, flag)


def _compiled(module_name: str, name: str, flag: str) -> ModuleType:
    from torch.utils.cpp_extension import _get_build_directory

    path = Path(_get_build_directory(module_name, False)) / f"{module_name}.so"
    try:
        found = importlib.util.spec_from_file_location(module_name, path)
        if found is None or found.loader is None:
            raise ImportError(f"{path} cannot be loaded")
        module = importlib.util.module_from_spec(found)
        found.loader.exec_module(module)
    except ImportError as error:
        raise ConfigError(
            f"{flag} needs DeepSpeed's op {module_name}, which is not compiled on this node ({error}). Install {NEEDS[name]}, then run "
            f"`python -m orchestrator.runtime.ops {name}` once, in the environment of the workers."
        ) from error
    return module


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m orchestrator.runtime.ops", description="Compile an op of DeepSpeed's for this node.")
    parser.add_argument("op", choices=sorted(NEEDS))
    chosen = parser.parse_args(arguments)
    from deepspeed.ops.op_builder import AsyncIOBuilder, QuantizerBuilder

    {"async_io": AsyncIOBuilder, "quantizer": QuantizerBuilder}[chosen.op]().load(verbose=True)


if __name__ == "__main__":
    main()
