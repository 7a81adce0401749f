"""Claim: at ZeRO 3 a rank builds a model in memory for its share and a module or two, not for the model.

    python benchmarks/model_memory.py [--ranks 4] [--layers 4]

A Llama in fp32 on gloo ranks of one machine, as the workload `gpt` builds it: on the meta device, filled and divided module by module; and
whole on every rank, then divided. What is counted is the most of a rank's own memory (peak of its resident set over that before, all
imports done) until the weights are divided, before there are masters and optimizer state. Beside it: `model=gpt-70b` without values.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from record import ROOT, publish, table

sys.path.append(str(ROOT / "tests" / "integration" / "runtime"))

BAR = 0.5
"""Of the model's size, for a rank of four."""
VOCABULARY, BLOCK = 8192, 128
WAYS = {"modules": "module by module", "whole": "whole, then divided"}


def one_rank(way: str, layers: int) -> dict[str, float]:
    """In a process of its own, which ends with it."""
    import deepspeed
    import torch
    import torch.distributed as dist

    from orchestrator.layout import deepspeed_config, layout_for
    from orchestrator.runtime.engine import disable_shared_memory_op
    from orchestrator.runtime.initialise import Values, partition_at_once
    from orchestrator.spec import JobSpec, Precision, from_dict
    from workloads.decoder import decoder_of

    disable_shared_memory_op()
    deepspeed.comm.init_distributed("gloo", dist_init_required=False)
    world = dist.get_world_size()
    spec = from_dict(JobSpec, {
        "workload": {"name": "m", "entrypoint": "m:M"}, "model": {"name": "m"}, "data": {"name": "d"},
        "training": {"max_steps": 1, "global_batch_size": world, "micro_batch_size": 1, "precision": "fp32"},
        "parallelism": {"zero_stage": 3}, "resources": {"num_workers": world},
    })  # fmt: skip
    layout, cpu = layout_for(spec), torch.device("cpu")
    config = deepspeed_config(spec, layout, Precision.fp32)
    decoder = decoder_of({"hidden_size": 1024, "intermediate_size": 2816, "num_layers": layers, "num_heads": 16})
    dist.barrier()
    before, began = resident("VmRSS"), time.monotonic()
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    with torch.device("meta" if way == "modules" else "cpu"):
        model = decoder.build(VOCABULARY, BLOCK)
    elements = sum(parameter.numel() for parameter in model.parameters())
    initialise = decoder.initialise if way == "modules" else None
    if initialise:
        Values(model, initialise, 0, cpu, torch.float32).fill(model, partition_at_once(layout, config))
    else:
        deepspeed.zero.Init(model, config_dict_or_path=config)
    found = {"peak": resident("VmHWM") - before, "seconds": time.monotonic() - began, "model": 4 * elements}
    dist.barrier()
    return found


def resident(field: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(f"{field}:"))
    return int(line.split()[1]) * 1024


def measure(way: str, ranks: int, layers: int) -> dict[str, Any]:
    """The largest of the ranks' figures. They are forked from this process, which has all imports."""
    from forked import run_ranks  # not before `preload`, which wants to be the first to import torch

    with tempfile.TemporaryDirectory() as folder:

        def work(rank: int) -> None:
            Path(folder, f"{rank}.json").write_text(json.dumps(one_rank(way, layers)))

        run_ranks(ranks, work)
        found = [json.loads(path.read_text()) for path in Path(folder).iterdir()]
    return {name: max(row[name] for row in found) for name in found[0]}


def outline() -> dict[str, Any]:
    """In a process of its own: what `model=gpt-70b` takes without values."""
    import torch

    from orchestrator.config import load_job_spec
    from workloads.decoder import decoder_of

    options = load_job_spec(["workload=gpt", "model=gpt-70b"]).model.options
    with torch.device("meta"):
        decoder_of({"hidden_size": 64, "num_heads": 2}).build(VOCABULARY, BLOCK)  # what is made once
        before, began = resident("VmRSS"), time.monotonic()
        model = decoder_of(options).build(32_000, 4096)
    seconds, peak = time.monotonic() - began, resident("VmHWM") - before
    return {"elements": sum(parameter.numel() for parameter in model.parameters()), "seconds": seconds, "peak": peak}


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--ranks", type=int, default=4)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--outline", action="store_true")
    asked = parser.parse_args()
    if asked.outline:
        print(json.dumps(outline()))
        return 0
    os.environ |= {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
    from orchestrator.runtime.preload import preload

    preload()
    found = {way: measure(way, asked.ranks, asked.layers) for way in WAYS}
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "DS_ACCELERATOR": "cpu"}
    done = subprocess.run([sys.executable, __file__, "--outline"], env=environment, capture_output=True, text=True, check=True)
    large = json.loads(done.stdout.strip().splitlines()[-1])
    size = found["modules"]["model"]
    rows = [
        (WAYS[way], f"{row['peak'] / 1e6:.0f} MB", f"{row['peak'] / size:.2f}", f"{row['seconds']:.1f} s") for way, row in found.items()
    ]
    ours, whole = (round(found[way]["peak"] / size, 2) for way in WAYS)
    return publish(
        "model_memory", "At ZeRO 3 a rank builds a model in memory for its share and a module or two, not for the model",
        ours=ours, bar=BAR, holds=ours <= BAR, peers={"built whole": whole},
        rows=[
            f"A Llama of {size / 1e6:.0f} MB in fp32 on {asked.ranks} gloo ranks; the most of any rank until they are divided.", "",
            *table(("built", "memory", "of the model's size", "time"), rows), "",
            f"`model=gpt-70b` on the meta device: {large['elements']:,} parameters, {large['seconds']:.1f} s, {large['peak'] / 1e6:.0f} MB",
        ],
        ranks=asked.ranks, model_bytes=size, outline_70b=large,
    )  # fmt: skip


if __name__ == "__main__":
    raise SystemExit(main())
