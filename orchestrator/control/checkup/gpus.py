"""GPUs and NCCL, where there are any. Asked in a process of its own: this one never imports torch."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

from orchestrator.control.checkup.finding import Finding, Subject, ok, problem, warning

LIMIT_S = 120.0
_PROBE = """
import json, os, tempfile, torch
found = {"torch": torch.__version__, "cuda": torch.version.cuda, "count": 0, "names": [], "nccl": None, "error": ""}
try:
    found["count"] = torch.cuda.device_count() if torch.cuda.is_available() else 0
    found["names"] = [torch.cuda.get_device_name(n) for n in range(found["count"])]
    if found["count"]:
        import torch.distributed as dist
        found["nccl"] = ".".join(map(str, torch.cuda.nccl.version()))
        with tempfile.TemporaryDirectory() as folder:
            dist.init_process_group("nccl", init_method=f"file://{folder}/store", rank=0, world_size=1)
            for n in range(found["count"]):
                torch.cuda.set_device(n)
                torch.ones(1 << 20, device="cuda").sum().item()
            torch.cuda.set_device(0)
            value = torch.ones(1 << 20, device="cuda")
            dist.all_reduce(value)
            torch.cuda.synchronize()
            dist.destroy_process_group()
except Exception as error:
    found["error"] = f"{type(error).__name__}: {error}".splitlines()[0]
print(json.dumps(found))
"""

Probe = Callable[[], dict[str, Any]]


def check_gpus(subject: Subject, probe: Probe | None = None) -> Iterator[Finding]:
    devices = sorted(path.name for path in subject.devices.glob("nvidia[0-9]*"))
    if not devices:
        yield ok("none on this machine: its jobs run on CPUs")
        return
    try:
        found = (probe or _ask_torch)()
    except (subprocess.SubprocessError, ValueError) as error:
        yield problem(f"torch does not say what it sees of the {len(devices)} GPUs: {error}", "nvidia-smi   (does the driver answer?)")
        return
    yield _judged(found, len(devices))


def _judged(found: dict[str, Any], there: int) -> Finding:
    if found["cuda"] is None:
        return problem(
            f"there are {there} GPUs, but torch {found['torch']} was built without CUDA", "pip install torch   (a build with CUDA)"
        )
    if found["error"]:
        return problem(f"{there} GPUs, torch {found['torch']}: {found['error']}", "nvidia-smi; NCCL_DEBUG=INFO says more")
    if found["count"] < there:
        said = f"torch sees {found['count']} of {there} GPUs"
        return (warning if found["count"] else problem)(said, "unset CUDA_VISIBLE_DEVICES, and see nvidia-smi")
    names = ", ".join(sorted(set(found["names"])))
    return ok(f"{there} GPUs ({names}), CUDA {found['cuda']}, NCCL {found['nccl']}: all compute, and a collective went through")


def _ask_torch() -> dict[str, Any]:
    done = subprocess.run([sys.executable, "-c", _PROBE], capture_output=True, text=True, timeout=LIMIT_S, check=True)
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found
