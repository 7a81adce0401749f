"""Claim: on one GPU our engine trains near the speed of the metal, and as fast as a plain compiled PyTorch loop.

    python benchmarks/gpu_throughput.py --model 125m|350m|1.3b|7b|resnet50 [--rounds 6] [--limit 450]
    python benchmarks/gpu_throughput.py --device cpu --model tiny --compile none        # only shows that it runs

One process, one GPU, nothing but torch, deepspeed and numpy; data are random and lie on the device. `plain` is a loop as a person writes
it: torch.compile, autocast to bf16 over fp32 weights, fused AdamW, SDPA, clipping, accumulation. `zero1`, `zero2` and `zero3` are
`orchestrator.runtime.engine.Engine`, compiled too. Each engine takes turns with `plain`, block by block, and a ratio is taken per round, so
that the card's drift cancels. MFU is by the PaLM convention (6 N + 12 L h s per token) and the data sheet's peak; `share` is the same over
the rate that this card reaches in a large product of random bf16 matrices, measured first.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]
os.environ |= {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "LOCAL_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}

import torch  # noqa: E402
from gpu_models import RESNET_BATCH, RESNET_FLOPS, SHAPES, Decoder, ResNet50, decoder_batch, image_batch  # noqa: E402
from record import publish, table  # noqa: E402

MFU_BARS = {"125m": 0.46, "350m": 0.50, "1.3b": 0.54, "7b": 0.55}
SHARE_BAR, IMAGES_BAR = 0.68, 3000
RATIO_BARS = {"zero1": 0.99, "zero2": 0.98, "zero3": 0.95}
ACCUMULATION = 4
STEPS = 3  # of a block
LR = 1e-4


class Task:
    """A model, its batch and what a step of it costs."""

    def __init__(self, name: str, device: torch.device) -> None:
        self.device, self.images = device, name in ("resnet50", "tiny-resnet")
        self.shape = SHAPES.get(name)
        if self.shape is not None:
            self.batch = decoder_batch(self.shape, device)
            self.samples, self.flops_per_sample = self.shape.micro_batch, self.shape.flops_per_token * self.shape.block
        else:
            self.samples, side = (RESNET_BATCH, 224) if name == "resnet50" else (2, 32)
            self.batch, self.flops_per_sample = image_batch(self.samples, side, device), RESNET_FLOPS * (side / 224) ** 2

    def model(self, zero_stage: int | None) -> torch.nn.Module:
        """None: to be called under autocast, so the residual stream is told to be narrow, as our engine's is by itself.

        At ZeRO 3 the loss lies outside of what is compiled, so there it is computed in chunks.
        """
        torch.manual_seed(0)
        with torch.device(self.device):
            if self.shape is not None:
                narrow = torch.bfloat16 if zero_stage is None and self.device.type == "cuda" else None
                return Decoder(self.shape, chunk=4096 if zero_stage == 3 else 0, stream=narrow)
            return ResNet50() if self.samples == RESNET_BATCH else ResNet50((1, 1), 4)


class Plain:
    def __init__(self, task: Task, backend: str) -> None:
        self.task, model = task, task.model(None)
        if task.images:
            model = model.to(memory_format=torch.channels_last)
        matrices = [parameter for parameter in model.parameters() if parameter.dim() > 1]
        groups = [{"params": matrices}, {"params": [p for p in model.parameters() if p.dim() <= 1], "weight_decay": 0.0}]
        on_gpu = task.device.type == "cuda"
        if task.images:
            self.optimizer: Any = torch.optim.SGD(groups, lr=LR, momentum=0.9, weight_decay=1e-4, fused=on_gpu)
        else:
            self.optimizer = torch.optim.AdamW(groups, lr=LR, betas=(0.9, 0.95), weight_decay=0.1, fused=on_gpu)
        self.model = model
        self.call: Any = model if backend == "none" else torch.compile(model, backend=backend)
        self.narrow = torch.autocast("cuda", torch.bfloat16) if on_gpu else contextlib.nullcontext()

    def step(self) -> torch.Tensor:
        for _ in range(ACCUMULATION):
            with self.narrow:
                loss = self.call(self.task.batch["inputs"], self.task.batch["targets"]) / ACCUMULATION
            loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return loss.detach() * ACCUMULATION


class Ours:
    def __init__(self, task: Task, backend: str, zero_stage: int) -> None:
        from orchestrator.layout import layout_for
        from orchestrator.runtime.engine import Engine
        from orchestrator.spec import JobSpec, from_dict

        on_gpu = task.device.type == "cuda"
        training = {
            "max_steps": 10, "global_batch_size": task.samples * ACCUMULATION, "micro_batch_size": task.samples,
            "precision": "bf16" if on_gpu else "fp32", "compile": backend != "none", "channels_last": task.images,
            **({} if backend == "none" else {"compile_backend": backend}),
        }  # fmt: skip
        optimizer = {"name": "sgd", "weight_decay": 1e-4} if task.images else {"weight_decay": 0.1}
        spec = from_dict(JobSpec, {
            "workload": {"name": "gpu", "entrypoint": "gpu:Model"}, "model": {"name": "m"}, "data": {"name": "d"}, "training": training,
            "optimizer": {**optimizer, "lr": LR}, "parallelism": {"zero_stage": zero_stage},
            "resources": {"num_workers": 1, "gpus_per_worker": float(on_gpu)},
        })  # fmt: skip
        self.task = task
        self.engine = Engine(task.model(zero_stage), _loss, spec, layout_for(spec), task.device)

    def step(self) -> torch.Tensor:
        return self.engine.step((self.task.batch for _ in range(ACCUMULATION)), LR).loss

    def close(self) -> None:
        self.engine._engine.destroy()


def _loss(model: Any, batch: Any) -> torch.Tensor:
    return model(batch["inputs"], batch["targets"])


class Run:
    """Everything measured, in the order of the measuring."""

    def __init__(self, name: str, device: torch.device, backend: str, rounds: int, limit_s: float, arms: list[str]) -> None:
        self.arms = [arm for arm in arms if arm == "zero1" or name in SHAPES]
        self.began, self.limit_s, self.rounds, self.backend = time.monotonic(), limit_s, rounds, backend
        self.task, self.device = Task(name, device), device
        self.matmul = matmul_rate(device)
        self.say(f"matrix products run at {self.matmul / 1e12:.3g} TFLOP/s")
        self.seconds: dict[str, float] = {}
        """Of a step, by arm."""
        self.ratios: dict[str, list[float]] = {}
        self.losses: dict[str, tuple[float, float]] = {}
        self.left_out: dict[str, str] = {}

    def say(self, text: str) -> None:
        print(f"{time.monotonic() - self.began:6.1f} s  {text}", flush=True)

    def all_arms(self) -> None:
        plain = self._warm("plain", lambda: Plain(self.task, self.backend))
        for name in self.arms:
            if time.monotonic() - self.began > self.limit_s:
                self.left_out[name] = "no time left"
                continue
            try:
                self._compare(name, int(name[-1]), plain)
            except torch.cuda.OutOfMemoryError as error:
                self.left_out[name] = str(error).splitlines()[0]
                self.say(f"{name}: {self.left_out[name]}")
            self._tidy()

    def _compare(self, name: str, stage: int, plain: Plain) -> None:
        ours = self._warm(name, lambda: Ours(self.task, self.backend, stage))
        times = [self._round(ours, plain, ours_first=bool(number % 2)) for number in range(self.rounds)]
        self.seconds[name] = statistics.median(own for own, _ in times)
        known = [self.seconds["plain"]] if "plain" in self.seconds else []
        self.seconds["plain"] = min([*known, statistics.median(other for _, other in times)])
        self.ratios[name] = sorted(other / own for own, other in times)
        self.say(f"{name}: {self.seconds[name] * 1e3:.1f} ms a step, {statistics.median(self.ratios[name]):.3f} x plain")
        ours.close()

    def _warm(self, name: str, make: Callable[[], Any]) -> Any:
        """Built, compiled, and its loss seen to fall: an arm that does not train measures nothing."""
        arm = make()
        self.say(f"{name}: built")
        torch._dynamo.utils.counters.clear()
        first = float(arm.step())
        self.say(f"{name}: first step done")
        for _ in range(4):
            last = float(arm.step())
        found = torch._dynamo.utils.counters
        breaks = sum(found["graph_break"].values()) + sum(found["recompile_limit"].values())
        self.say(f"{name}: {found['stats']['unique_graphs']} graphs, {breaks} breaks, loss {first:.4f} -> {last:.4f}")
        self.losses[name] = (first, last)
        return arm

    def _round(self, ours: Ours, plain: Plain, ours_first: bool) -> tuple[float, float]:
        """(seconds of a step of ours, of plain)."""
        if ours_first:
            return self._block(ours), self._block(plain)
        other = self._block(plain)
        return self._block(ours), other

    def _block(self, arm: Any) -> float:
        """Seconds of a step."""
        wait(self.device)
        began = time.perf_counter()
        for _ in range(STEPS):
            arm.step()
        wait(self.device)
        return (time.perf_counter() - began) / STEPS

    def _tidy(self) -> None:
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()


def matmul_rate(device: torch.device, seconds: float = 1.0) -> float:
    """Floating point operations a second of a large product of random matrices: bf16, 8192 wide, on a GPU; fp32, 512, on a CPU."""
    size, dtype = (8192, torch.bfloat16) if device.type == "cuda" else (512, torch.float32)
    left, right = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    for _ in range(3):
        left @ right
    wait(device)
    began, count = time.perf_counter(), 0
    while time.perf_counter() - began < seconds:
        for _ in range(10):
            left @ right
        wait(device)
        count += 10
    return 2.0 * size**3 * count / (time.perf_counter() - began)


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def report(name: str, run: Run, folder: Path) -> int:
    from orchestrator.runtime.metrics import device_name, peak_flops_per_s
    from orchestrator.spec import Precision

    peak = peak_flops_per_s(device_name(run.device), Precision.bf16)
    samples = run.task.samples * ACCUMULATION
    rates = {arm: samples / seconds for arm, seconds in run.seconds.items()}
    flops = {arm: rate * run.task.flops_per_sample for arm, rate in rates.items()}
    medians = {f"{arm} / plain": round(statistics.median(ratios), 4) for arm, ratios in run.ratios.items()}
    ours: dict[str, float | None] = {**medians}
    bar: dict[str, float | None] = {f"{arm} / plain": RATIO_BARS[arm] for arm in run.arms}
    if run.task.images:
        ours["images_per_s"], bar["images_per_s"] = round(rates.get("zero1", 0.0), 1), IMAGES_BAR
    else:
        best = max((flops[arm] for arm in run.arms if arm in flops), default=0.0)
        ours |= {"mfu": round(best / peak, 4) if peak else None, "share": round(best / run.matmul, 4)}
        bar |= {"mfu": MFU_BARS.get(name), "share": SHARE_BAR}
    met = {key: (found := ours.get(key)) is not None and wanted is not None and found >= wanted for key, wanted in bar.items()}
    unit = 1 if run.task.shape is None else run.task.shape.block
    rows = [
        (arm, f"{run.seconds[arm] * 1e3:.2f}", f"{rates[arm] * unit:,.0f}", f"{flops[arm] / peak:.1%}" if peak else "-",
         f"{flops[arm] / run.matmul:.1%}", medians.get(f"{arm} / plain", "1"), "{:.4f} -> {:.4f}".format(*run.losses[arm]))
        for arm in run.seconds
    ]  # fmt: skip
    what = "images/s" if run.task.images else "tokens/s"
    notes = [run.task.shape.note] if run.task.shape and run.task.shape.note else []
    notes += [f"{arm} was left out: {why}." for arm, why in run.left_out.items()]
    if run.device.type == "cuda":
        notes.append(f"Most memory held: {torch.cuda.max_memory_allocated() / 2**30:.1f} GiB.")
    return publish(
        f"gpu_throughput_{name}", f"One GPU trains {name} near the speed of its matrix products, and as fast as plain compiled PyTorch",
        ours=ours, bar=bar, holds=all(met.values()), folder=folder, device=device_name(run.device), left_out=run.left_out,
        peers={"plain_s_per_step": run.seconds.get("plain"), "plain_mfu": flops["plain"] / peak if peak and "plain" in flops else None},
        matmul_tflops=round(run.matmul / 1e12, 3), peak_tflops=peak / 1e12, met=met, compile=run.backend, rounds=run.rounds,
        rows=[*table(("arm", "ms a step", what, "MFU", "share of matmul rate", "x plain", "loss"), rows), "", *notes],
    )  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True, choices=[*SHAPES, "resnet50", "tiny-resnet"])
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--compile", default="inductor", choices=("inductor", "aot_eager", "none"))
    parser.add_argument("--arms", nargs="+", default=list(RATIO_BARS), choices=list(RATIO_BARS), help="ResNet-50 has zero1 alone")
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--limit", type=float, default=400.0, help="seconds after which no other arm is begun")
    parser.add_argument("--folder", type=Path, default=ROOT / "benchmarks" / "results")
    asked = parser.parse_args()

    from orchestrator.runtime.accelerator import choose_device
    from orchestrator.runtime.engine import disable_shared_memory_op

    device = choose_device(float(asked.device == "cuda"), 0)
    torch.set_float32_matmul_precision("high")
    disable_shared_memory_op()
    backend = "nccl" if asked.device == "cuda" else "gloo"
    torch.distributed.init_process_group(backend, store=torch.distributed.HashStore(), rank=0, world_size=1)
    run = Run(asked.model, device, asked.compile, asked.rounds, asked.limit, asked.arms)
    run.all_arms()
    status = report(asked.model, run, asked.folder)
    torch.distributed.destroy_process_group()
    return status


if __name__ == "__main__":
    raise SystemExit(main())
