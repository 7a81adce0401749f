"""Import, once per node, what a first training step needs; the ranks that are forked afterwards start in tenths of a second.

DeepSpeed and torch import 1,500 modules lazily, inside the first step. `_LAZY` are those of them that pull in the others: recorded
from a real rank at ZeRO 1 and 3 (the difference of `sys.modules`, in reverse order of completion, without what is implied).
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_FIRST = ("numpy", "torch")
_LAZY = (
    "deepspeed.runtime.zero.muon.muon_optimizer",
    "deepspeed.runtime.superoffload.superoffload_stage3",
    "deepspeed.module_inject.auto_ep_layer",
    "deepspeed.comm.mori",
    "deepspeed.ops.op_builder.all_ops",
    "torch._subclasses.schema_check_mode",
    "torch.distributed.optim",
)
_MODELS = (
    "transformers.models.llama.modeling_llama",
    "transformers.models.bert.modeling_bert",
    "transformers.models.mixtral.modeling_mixtral",
    "transformers.models.qwen2_moe.modeling_qwen2_moe",
    "transformers.models.resnet.modeling_resnet",
    "transformers.models.convnext.modeling_convnext",
    "transformers.models.vit.modeling_vit",
    "transformers.models.t5.modeling_t5",
    "tokenizers",
)
_OURS = ("orchestrator.runtime.rank", "orchestrator.storage.s3")


def preload() -> None:
    """Import all that a rank needs. Raises RuntimeError if a thread was started: then the process must not fork.

    No CUDA call is made. DeepSpeed is imported for the CPU; a rank that has a GPU tells it so (`accelerator.choose_device`).
    """
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    os.environ.setdefault("JE_ARROW_MALLOC_CONF", "background_thread:false")  # pyarrow's allocator starts a thread at import
    _import_all(_FIRST)
    with _hidden("mlflow"):  # DeepSpeed's tuner takes it if it can: half a second and 100 MB for nothing
        _import_all(("deepspeed", *_LAZY))
    with _hidden("torchao"):  # transformers takes it if it can: a second; jobs in fp8 import it themselves
        _import_all((*_OURS, *_MODELS))
    threads = len(list(Path("/proc/self/task").iterdir()))
    if threads != 1:
        raise RuntimeError(f"the process has {threads} threads after its imports, so it must not fork.")


def _import_all(names: tuple[str, ...]) -> None:
    for name in names:
        importlib.import_module(name)


@contextmanager
def _hidden(name: str) -> Iterator[None]:
    """Inside, the module `name` cannot be imported, unless it already is."""
    if name in sys.modules:
        yield
        return
    sys.modules[name] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules[name]
