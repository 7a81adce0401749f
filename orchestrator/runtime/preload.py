"""What a rank's first step needs, imported before the fork. No thread is started and no GPU is touched."""

from __future__ import annotations

import importlib
import os

MODULES = (
    "torch",
    "torch.distributed",
    "deepspeed",
    "orchestrator.runtime.rank",
    "transformers.models.llama.modeling_llama",
    "transformers.models.resnet.modeling_resnet",
    "tokenizers",
    "sklearn.datasets",
)


def preload() -> None:
    """Import them all. Raises the ImportError of what is not installed."""
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    # pyarrow, which comes with mlflow, which comes with deepspeed, would start a thread in its allocator
    os.environ.setdefault("JE_ARROW_MALLOC_CONF", "background_thread:false")
    for name in MODULES:
        importlib.import_module(name)
