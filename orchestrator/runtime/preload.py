"""Import, once per node, what a first training step needs; the ranks that are forked afterwards start in tenths of a second.

DeepSpeed and torch import 1,500 modules lazily, inside the first step. Which ones is not guessed: `recorded_imports.txt` lists what real
ranks have imported up to their second step, without what these imports bring along. After a change of packages, record it anew:

    UPDATE_PRELOAD=1 .venv/bin/python -m pytest tests/integration/runtime/test_preload.py
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from orchestrator.code.origin import shipped_modules

RECORD = Path(__file__).with_name("recorded_imports.txt")
_FIRST = ("numpy", "torch")
_MODELS = (  # that the shipped workloads import once they know which
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
    """Import all that a rank needs, also what it would import in its first step. Raises RuntimeError if a thread was started: then the
    process must not fork.

    No CUDA call is made. DeepSpeed is imported for the CPU; a rank that has a GPU tells it so (`accelerator.choose_device`).
    """
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    os.environ.setdefault("JE_ARROW_MALLOC_CONF", "background_thread:false")  # pyarrow's allocator starts a thread at import
    import_known()
    import_recorded(RECORD.read_text().split())
    threads = len(list(Path("/proc/self/task").iterdir()))
    if threads != 1:
        raise RuntimeError(f"the process has {threads} threads after its imports, so it must not fork.")


def import_known() -> None:
    """What a rank asks for by name, before it has a job."""
    _import_all(_FIRST)
    with _hidden("mlflow"):  # DeepSpeed's tuner takes it if it can: half a second and 100 MB for nothing
        _import_all(("deepspeed",))
    with _hidden("torchao"):  # transformers takes it if it can: a second; jobs in fp8 import it themselves
        _import_all((*_OURS, *_MODELS, *shipped_modules()))


def import_recorded(names: Iterable[str]) -> list[str]:
    """Those of `names` that were not there yet, nor brought along by the ones before."""
    found = []
    with _hidden("mlflow"), _hidden("torchao"):
        for name in names:
            if name not in sys.modules:
                importlib.import_module(name)
                found.append(name)
    return found


def _import_all(names: Iterable[str]) -> None:
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
