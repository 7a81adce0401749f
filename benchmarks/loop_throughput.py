"""Claim: the training loop costs nothing: as fast as a bare DeepSpeed loop, and as a plain PyTorch loop of the same model.

    python benchmarks/loop_throughput.py [--world 1|2] [--blocks 20]

All loops live in the same processes and train the GPT of `make train` on the same samples in turn, block by block; a ratio is taken per
round, so that the machine's drift cancels. `ours` is `orchestrator.runtime.train.train` itself, with logging, progress clock and votes,
which stands still where it has logged while the others have their turn; evaluation and saves are outside the measured time. A block
begins when all ranks are there and is over when the last one is done, whoever waits for whom. Plain is PyTorch as in nanoGPT with the
same kernels: fused AdamW, clipping, accumulation; with two workers DDP without needless synchronisation.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from record import ROOT, publish, table

sys.path.insert(0, str(ROOT))
BARS = {1: {"ours / deepspeed": 0.995, "ours / plain": 0.97}, 2: {"ours / deepspeed": 0.995, "ours / plain": 0.95}}
STEPS = 5  # of a block: one log step of the shipped configuration; short, because the machine drifts within seconds


class Recorder:
    """The rank's line to its agent: keeps what is told."""

    def __init__(self) -> None:
        self.told: list[dict[str, Any]] = []

    def send(self, type_: str, **fields: Any) -> None:
        self.told.append({"type": type_, **fields})


class NoSaves:
    """In the place of the slabs: what a save costs is another benchmark's."""

    stalled_s = 0.0
    busy = copying = False

    def stage(self, *_: Any, **__: Any) -> None:
        return

    def finish(self) -> None:
        return


class Turns:
    """In the place of the cadence of saves, which the loop asks after each step: at the end of each block `turn` is called instead."""

    interval_s = 0.0

    def __init__(self, turn: Callable[[], None]) -> None:
        self._turn = turn
        self._last = 0

    def is_step(self, step: int) -> bool:
        if step % STEPS == 0 and step != self._last:
            self._last = step
            self._turn()
        return False

    def is_time(self) -> bool:
        return False

    def saved(self, stalled_s: float) -> None:
        return


class Loops:
    """The three loops of one rank. `deepspeed` and `plain` train one block, `ours` all of its own."""

    def __init__(self, rank: int, world: int, folder: Path, *overrides: str) -> None:
        import torch

        from orchestrator.config import load_job_spec
        from orchestrator.data.loader import TrainLoader, open_dataset
        from orchestrator.data.prepare import ensure_dataset
        from orchestrator.layout import layout_for
        from orchestrator.runtime.accelerator import choose_device
        from orchestrator.runtime.engine import disable_shared_memory_op
        from orchestrator.runtime.entrypoint import load_workload
        from orchestrator.storage import DirectoryStore

        torch.set_num_threads(1)
        quiet = ("training.eval_samples=2", "training.eval_interval_steps=0")
        self.spec = load_job_spec(["workload=gpt", f"resources.num_workers={world}", *quiet, *overrides])
        self.layout = layout_for(self.spec)
        self.rank, self.world = rank, world
        self.device = choose_device(0, rank)
        disable_shared_memory_op()
        torch.distributed.init_process_group("gloo")
        self.workload = load_workload(self.spec)
        store = DirectoryStore(folder / "store")
        content = ensure_dataset(store, self.workload, self.spec, lambda text: None) if rank == 0 else ""
        torch.distributed.barrier()
        content = content or ensure_dataset(store, self.workload, self.spec, lambda text: None)
        self.dataset = open_dataset(store, self.spec.data.name, content, folder / "cache")
        self.loader = TrainLoader(self.dataset, self.layout, rank, 0)
        self.folder = folder
        self.position = 0
        self._ours = self._make_ours()
        self._bare = self._make_bare()
        self._plain, self._optimizer = self._make_plain()

    @property
    def engine(self) -> Any:
        """Of `ours`."""
        return self._ours.engine

    def _model(self) -> Any:
        from orchestrator.runtime.seeding import seed_model

        seed_model(0)
        return self.workload.build_model(self.dataset)

    def _engine(self) -> Any:
        from orchestrator.runtime.engine import Engine

        return Engine(self._model(), self.workload.loss, self.spec, self.layout, self.device)

    def _make_ours(self) -> Any:
        from orchestrator.runtime.cadence import Cadence
        from orchestrator.runtime.guard import Guard
        from orchestrator.runtime.link import ProgressClock
        from orchestrator.runtime.metrics import Meter
        from orchestrator.runtime.selection import selection_of
        from orchestrator.runtime.task import RankTask
        from orchestrator.runtime.training import Training
        from orchestrator.spec import to_dict
        from orchestrator.storage import MemoryStore

        task = RankTask(
            job_id="loop", run=1, epoch=1, spec=to_dict(self.spec), rank=self.rank, world_size=self.world, local_rank=self.rank,
            local_world_size=self.world, master_address="", master_port=0, agent_socket="", clock="", cache_dir="",
        )  # fmt: skip
        clock = ProgressClock(self.folder / f"clock{self.rank}", create=True)
        link: Any = Recorder()
        meter = Meter(self.workload.tokens_per_sample, 0.0, 0.0)
        selection = selection_of(self.spec)
        staging: Any = NoSaves()
        engine = self._engine()
        return Training(
            task, self.spec, self.layout, self.workload, MemoryStore(), self.dataset, engine, link, clock, meter, selection,
            staging, Cadence(self.spec.checkpoint, nodes=1), Guard(self.spec.guard, engine.precision),
        )  # fmt: skip

    def _make_bare(self) -> Any:
        """DeepSpeed's own engine of the same settings, clipping too (which `ours` may do itself, where DeepSpeed's way is slower)."""
        import deepspeed

        from orchestrator.layout import deepspeed_config
        from orchestrator.runtime.optimizers import parameter_groups
        from orchestrator.spec import Precision

        model = self._model()
        config = deepspeed_config(self.spec, self.layout, Precision.fp32) | {"gradient_clipping": self.spec.training.gradient_clipping}
        engine, *_ = deepspeed.initialize(
            model=model, model_parameters=parameter_groups(model), config=config, dist_init_required=False
        )  # fmt: skip
        return engine

    def _make_plain(self) -> tuple[Any, Any]:
        import torch

        model = self._model()
        matrices = [parameter for parameter in model.parameters() if parameter.dim() > 1]
        vectors = [parameter for parameter in model.parameters() if parameter.dim() <= 1]
        groups = [{"params": matrices}, {"params": vectors, "weight_decay": 0.0}]
        asked = self.spec.optimizer
        optimizer = torch.optim.AdamW(groups, lr=asked.lr, betas=asked.betas, eps=asked.eps, weight_decay=asked.weight_decay, fused=True)
        return (torch.nn.parallel.DistributedDataParallel(model) if self.world > 1 else model), optimizer

    def ours(self, blocks: int, turn: Callable[[], None] = lambda: None) -> None:
        """Train `blocks` blocks; after each, on all ranks, `turn` is called."""
        from orchestrator.runtime.train import train

        run = self._ours
        assert run.spec.training.log_interval_steps == STEPS and run.step % STEPS == 0
        training = dataclasses.replace(run.spec.training, max_steps=run.step + blocks * STEPS)
        run.spec, run.cadence = dataclasses.replace(run.spec, training=training), Turns(turn)
        train(run)

    def rounds(self, blocks: int, others: Sequence[Callable[[], None]], warm_up: int = 3) -> list[dict[str, float]]:
        """Seconds of each loop's block, a row a round; the `others` in an order drawn anew for each."""
        rows: list[dict[str, float]] = []
        rng = random.Random(0)  # the same turns on all ranks
        began_s = time.monotonic()

        def turn() -> None:
            nonlocal began_s
            rows.append({"ours": self._together_s() - began_s})
            if self.rank == 0 and len(rows) % 10 == 0:
                print(f"round {len(rows) - warm_up} of {blocks}", flush=True)
            for arm in rng.sample(others, len(others)):
                begun_s = self._together_s()
                arm()
                rows[-1][arm.__name__] = self._together_s() - begun_s
            began_s = self._together_s()

        self.ours(warm_up + blocks, turn)
        return rows[warm_up:]

    def _together_s(self) -> float:
        """When all ranks are there."""
        import torch

        torch.distributed.barrier()
        return time.monotonic()

    def deepspeed(self) -> None:
        """What a person writes with DeepSpeed alone; the loss is read as often as `ours` does."""
        engine = self._bare
        for step in range(STEPS):
            losses = []
            for batch in self.loader.micro_batches(self._next()):
                loss = self.workload.loss(engine, batch)
                losses.append(loss.detach())
                engine.backward(loss)
                engine.step()
            if (step + 1) % self.spec.training.log_interval_steps == 0:
                float(sum(losses))

    def plain(self) -> None:
        import torch

        for step in range(STEPS):
            batches = list(self.loader.micro_batches(self._next()))
            for number, batch in enumerate(batches):
                last = number == len(batches) - 1
                quiet = self._plain.no_sync() if self.world > 1 and not last else contextlib.nullcontext()
                with quiet:
                    loss = self.workload.loss(self._plain, batch) / len(batches)
                    loss.backward()
            torch.nn.utils.clip_grad_norm_(self._plain.parameters(), self.spec.training.gradient_clipping)
            self._optimizer.step()
            self._optimizer.zero_grad(set_to_none=True)
            if (step + 1) % self.spec.training.log_interval_steps == 0:
                loss.item()

    def _next(self) -> int:
        self.position += self.layout.global_batch_size
        return self.position


def rank_main(rank: int, world: int, folder: str, blocks: int, port: int, results: Any) -> None:
    be_rank(rank, world, port)
    loops = Loops(rank, world, Path(folder))
    for row in loops.rounds(blocks, [loops.deepspeed, loops.plain]):
        if rank == 0:
            results.put(row)


def be_rank(rank: int, world: int, port: int) -> None:
    os.environ |= {
        "RANK": str(rank), "WORLD_SIZE": str(world), "LOCAL_RANK": str(rank), "LOCAL_SIZE": str(world), "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu",
    }  # fmt: skip


def rows_of(main_of_rank: Callable[..., None], world: int, blocks: int) -> list[dict[str, float]]:
    """What rank 0 put in, a row a block. `main_of_rank(rank, world, folder, blocks, port, results)` runs in a process for each rank."""
    import torch

    from orchestrator.ports import free_port

    context = torch.multiprocessing.get_context("spawn")
    results = context.SimpleQueue()
    with tempfile.TemporaryDirectory() as folder:
        port = free_port()
        ranks = [context.Process(target=main_of_rank, args=(rank, world, folder, blocks, port, results)) for rank in range(world)]
        for process in ranks:
            process.start()
        for process in ranks:
            process.join()
    assert all(process.exitcode == 0 for process in ranks), [process.exitcode for process in ranks]
    return [results.get() for _ in range(blocks)]


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--world", type=int, default=1, choices=(1, 2))
    parser.add_argument("--blocks", type=int, default=20)
    asked = parser.parse_args()
    rows = rows_of(rank_main, asked.world, asked.blocks)
    ratios = {f"ours / {other}": sorted(row[other] / row["ours"] for row in rows) for other in ("deepspeed", "plain")}
    medians, bars = {name: statistics.median(values) for name, values in ratios.items()}, BARS[asked.world]
    per_step = {name: statistics.median(row[name] for row in rows) / STEPS * 1000 for name in rows[0]}
    lines = [(name, f"{medians[name]:.3f}", *_quartiles(values), bars[name]) for name, values in ratios.items()]
    return publish(
        f"loop_throughput_{asked.world}worker", f"The loop is as fast as what it stands on ({asked.world} worker{'s' * (asked.world > 1)})",
        ours={name: round(value, 3) for name, value in medians.items()}, bar=bars, n=asked.blocks,
        holds=all(medians[name] >= bars[name] for name in bars), ms_per_step={name: round(value, 1) for name, value in per_step.items()},
        rows=table(("speed", "median ratio", "25 %", "75 %", "bar"), lines),
    )  # fmt: skip


def _quartiles(values: list[float]) -> tuple[str, str]:
    low, _, high = statistics.quantiles(values, n=4)
    return f"{low:.3f}", f"{high:.3f}"


if __name__ == "__main__":
    raise SystemExit(main())
