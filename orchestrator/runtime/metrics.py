"""How fast and with how much memory a rank trains, from what the host knows anyway: nothing here waits for the device.

Times are taken by the host where the loop says what it does next (`Phase`). On a GPU the host runs ahead: what it has queued is waited
for where a figure is read from the device, so there `other_time_s` holds most of a log step, and `step_time_s` alone is exact.

Model FLOPs utilisation (MFU) follows PaLM (Chowdhery et al. 2022, arXiv:2204.02311, appendix B): a token of a decoder costs
6 N + 12 L h s floating point operations (N parameters, L layers, width h, sequence length s; attention not halved for causality,
recomputation not counted), and the peak is that of dense bf16 matrix products. `mfu_of_measured` takes, instead of the data sheet's peak,
what rank 0's device reached in a matrix product of its own at the start.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from orchestrator.runtime.link import Phase
from orchestrator.spec import Precision
from orchestrator.workload import Workload

PEAK_FLOPS_PER_S = {
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H200 NVL": 835e12,
    "H100": 989e12,
    "H200": 989e12,
    "A100": 312e12,
}
"""Dense bf16 and fp16 (NVIDIA's data sheets) by a part of the device's name; the first that fits counts."""

_SHOWN = {Phase.DATA: "data", Phase.FORWARD: "forward", Phase.BACKWARD: "backward", Phase.OPTIMIZER: "optimizer"}
_NOT_TRAINING = (Phase.START, Phase.RESTORE, Phase.CHECKPOINT, Phase.EVALUATION, Phase.END)
_STATM = Path("/proc/self/statm")


class Meter:
    """Rates and times of a rank's steps since the last report; time that is not training does not count."""

    def __init__(
        self, tokens_per_sample: int, flops_per_sample: float, peak_flops_per_s: float,
        clock: Callable[[], float] = time.monotonic, *, measured_flops_per_s: float = 0.0, sent_bytes: Mapping[str, float] | None = None,
    ) -> None:  # fmt: skip
        """The `flops_per_s` are those of all ranks together; 0 FLOPs or FLOPs per second: not known.

        `sent_bytes`: what a rank sends per step by kind of collective, reported beside the rates.
        """
        self._tokens_per_sample = tokens_per_sample
        self._flops_share = flops_per_sample / peak_flops_per_s if peak_flops_per_s else 0.0
        self._measured_share = flops_per_sample / measured_flops_per_s if measured_flops_per_s else 0.0
        sent = {f"comm_{name}_bytes_per_step": count for name, count in (sent_bytes or {}).items()}
        self._sent = {"comm_bytes_per_step": sum(sent.values()), **sent} if sent else {}
        self._clock = clock
        self._phase, self._since_s = Phase.START, clock()
        self.restart(0, 0)

    def restart(self, step: int, samples: int) -> None:
        """The window begins after `step` steps of `samples` samples, over all ranks."""
        self._step, self._samples = step, samples
        self._spent_s = dict.fromkeys(Phase, 0.0)

    def tick(self, phase: Phase) -> None:
        """What was done until now ends, `phase` begins."""
        now = self._clock()
        self._spent_s[self._phase] += now - self._since_s
        self._phase, self._since_s = phase, now

    def figures(self, step: int, samples: int) -> dict[str, float]:
        """Means over the steps since the last call; the times of the phases add up to `step_time_s`."""
        self.tick(self._phase)
        steps, seen = step - self._step, samples - self._samples
        spent = {phase: seconds / steps for phase, seconds in self._spent_s.items() if phase not in _NOT_TRAINING}
        self.restart(step, samples)
        step_time_s = max(sum(spent.values()), 1e-9)
        shown = {f"{name}_time_s": spent[phase] for phase, name in _SHOWN.items()}
        samples_per_s = seen / steps / step_time_s
        return {
            "samples_per_s": samples_per_s,
            "tokens_per_s": samples_per_s * self._tokens_per_sample,
            "step_time_s": step_time_s,
            **shown,
            "other_time_s": step_time_s - sum(shown.values()),
            **({"mfu": samples_per_s * self._flops_share} if self._flops_share else {}),
            **({"mfu_of_measured": samples_per_s * self._measured_share} if self._measured_share else {}),
            **self._sent,
        }


def flops_per_sample(workload: Workload, model: torch.nn.Module) -> float:
    """Of the forward and backward pass of one sample: the workload's own figure, else 6 x parameters x tokens; 0: not known.

    To be called before DeepSpeed gets the model: ZeRO 3 takes the shapes away.
    """
    own = getattr(workload, "flops_per_sample", None)
    if own is not None:
        return float(own(model))
    return 6.0 * sum(parameter.numel() for parameter in model.parameters()) * workload.tokens_per_sample


def peak_flops_per_s(device_name: str, precision: Precision) -> float:
    """Of one device; 0 where it is not known."""
    if precision not in (Precision.bf16, Precision.fp16):
        return 0.0
    return next((peak for name, peak in PEAK_FLOPS_PER_S.items() if name in device_name), 0.0)


def measure_flops_per_s(
    device: torch.device, dtype: torch.dtype, size: int = 8192, clock: Callable[[], float] = time.perf_counter
) -> float:
    """Of square matrix products of `size`: what the device reaches at best at the clock and power that it has now. Takes 0.1 s on an H100.

    The least time of ten, because what disturbs a product only makes it slower.
    """
    left, right = (torch.randn(size, size, dtype=dtype, device=device) for _ in range(2))
    least_s = min(_product_time_s(left, right, clock) for _ in range(10))
    return 2 * size**3 / least_s


def _product_time_s(left: torch.Tensor, right: torch.Tensor, clock: Callable[[], float]) -> float:
    if left.is_cuda:
        torch.cuda.synchronize(left.device)
    begun_s = clock()
    torch.mm(left, right)
    if left.is_cuda:
        torch.cuda.synchronize(left.device)
    return clock() - begun_s


def device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


def memory(device: torch.device) -> dict[str, float]:
    """This rank's, in bytes: torch's allocator on a GPU, and the resident set of the process (pages shared with its parent count)."""
    found = {"host_rss_bytes": float(_resident_bytes())}
    if device.type == "cuda":
        found["gpu_allocated_bytes"] = float(torch.cuda.memory_allocated(device))
        found["gpu_max_allocated_bytes"] = float(torch.cuda.max_memory_allocated(device))
        found["gpu_reserved_bytes"] = float(torch.cuda.memory_reserved(device))
    return found


def _resident_bytes() -> int:
    return int(_STATM.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
