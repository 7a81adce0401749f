"""A trace of some steps: what each operator and kernel took, for chrome://tracing or Perfetto; of a GPU also who held which memory."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch

_MAX_EVENTS = 200_000  # allocations and releases that a GPU's history keeps


class StepProfiler:
    """Records from the first to the last of `steps`, once; later if the job goes on from between them."""

    def __init__(self, steps: tuple[int, ...], device: torch.device) -> None:
        """`steps`: first and last; empty: nothing is recorded."""
        self._steps = range(steps[0], steps[1] + 1) if steps else range(0)
        self._on_gpu = device.type == "cuda"
        self._profile: Any = None

    def begin(self, step: int) -> None:
        """`step` is about to be made."""
        if step not in self._steps or self._profile is not None:
            return
        kinds = [torch.profiler.ProfilerActivity.CPU, *([torch.profiler.ProfilerActivity.CUDA] if self._on_gpu else [])]
        if self._on_gpu:
            torch.cuda.memory._record_memory_history(max_entries=_MAX_EVENTS)
        self._profile = torch.profiler.profile(activities=kinds, record_shapes=True)
        self._profile.start()

    def end(self, step: int) -> dict[str, bytes]:
        """`step` was made. After the last one: the files by name, `trace_steps_<first>_<last>.json.gz` and maybe `memory_...pickle`."""
        if self._profile is None or step != self._steps[-1]:
            return {}
        profile, self._profile = self._profile, None
        profile.stop()
        label = f"steps_{self._steps[0]}_{self._steps[-1]}"
        with tempfile.TemporaryDirectory() as folder:
            profile.export_chrome_trace(str(Path(folder, f"trace_{label}.json.gz")))
            if self._on_gpu:
                torch.cuda.memory._dump_snapshot(str(Path(folder, f"memory_{label}.pickle")))
                torch.cuda.memory._record_memory_history(enabled=None)
            return {path.name: path.read_bytes() for path in sorted(Path(folder).iterdir())}
