"""Claim: a checkpoint opens at another world size or ZeRO stage as fast as at its own, and is read from the store once.

    python benchmarks/checkpoint_reshard.py [--rounds 7] [--layers 8]

A Llama in fp32 under AdamW on gloo ranks of one machine, a folder as the store (what is read lies in the machine's page cache, so the
store takes as little as it can of the time). Every layout saves once; then each target's ranks go on from every source in turn, in another
order each round, by `runtime.resume.restore_newest` itself: manifest, plan, read, verify, exchange, weights refreshed. A time is that of
all ranks together; the ratio is taken per round against the load of the target's own layout. What is loaded is compared with what was
saved. Beside it: DeepSpeed's own `save_checkpoint`, and `load_checkpoint` at its own layout in the same rounds, which checks nothing; it
refuses another world size.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import random
import statistics
import sys
import tempfile
import time
import zlib
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from record import ROOT, publish, table

sys.path.append(str(ROOT / "tests" / "integration" / "runtime"))

BAR, READ_BAR = 1.2, 1.1
Cell = tuple[int, int]
"""(ZeRO stage, world size)."""
LOADS: dict[Cell, tuple[Cell, ...]] = {
    (0, 2): ((0, 2), (1, 2), (3, 2), (1, 1), (1, 3)),
    (1, 2): ((1, 2), (0, 2), (3, 2), (1, 1), (1, 3)),
    (3, 2): ((3, 2), (0, 2), (1, 2), (1, 1), (1, 3)),
    (1, 1): ((1, 1), (1, 2), (3, 2)),
    (1, 3): ((1, 3), (1, 2), (3, 2)),
}
"""By target: its own layout, then the others that it is loaded from."""


class Counting:
    """A store that counts the bytes that go out and in."""

    def __init__(self, inner: Any) -> None:
        self.url, self._inner = inner.url, inner
        self.read_bytes = self.written_bytes = 0

    def get(self, key: str, start: int = 0, length: int | None = None) -> bytes:
        data: bytes = self._inner.get(key, start, length)
        self.read_bytes += len(data)
        return data

    def read_into(self, key: str, start: int, *buffers: memoryview) -> None:
        self.read_bytes += sum(map(len, buffers))
        self._inner.read_into(key, start, *buffers)

    def put(self, key: str, data: bytes) -> None:
        self.written_bytes += len(data)
        self._inner.put(key, data)

    def delete(self, key: str) -> None:
        self._inner.delete(key)


class Rank:
    """An engine of one layout, and its training as far as a restore touches it."""

    def __init__(self, cell: Cell, rank: int, folder: Path, layers: int) -> None:
        import deepspeed
        import torch

        from orchestrator.layout import layout_for
        from orchestrator.runtime.engine import Engine, disable_shared_memory_op
        from orchestrator.runtime.guard import Guard
        from orchestrator.runtime.selection import selection_of
        from orchestrator.runtime.task import RankTask
        from orchestrator.runtime.training import Training
        from orchestrator.spec import JobSpec, from_dict
        from orchestrator.storage import DirectoryStore
        from workloads.decoder import decoder_of

        disable_shared_memory_op()
        deepspeed.comm.init_distributed("gloo", dist_init_required=False)
        stage, world = cell
        spec = from_dict(JobSpec, {
            "workload": {"name": "m", "entrypoint": "m:M"}, "model": {"name": "m"}, "data": {"name": "d"},
            "training": {"max_steps": 2, "global_batch_size": world, "micro_batch_size": 1, "precision": "fp32"},
            "parallelism": {"zero_stage": stage}, "resources": {"num_workers": world},
        })  # fmt: skip
        model = decoder_of({"hidden_size": 512, "intermediate_size": 1408, "num_layers": layers, "num_heads": 8}).build(8192, 128)
        layout = layout_for(spec)
        self.engine = Engine(model, lambda model, batch: torch.zeros(()), spec, layout, torch.device("cpu"))
        self.store = Counting(DirectoryStore(folder / "store"))
        task = RankTask(
            job_id="", run=1, epoch=1, spec={}, rank=rank, world_size=world, local_rank=rank, local_world_size=world, master_address="",
            master_port=0, agent_socket="", clock="", cache_dir="",
        )  # fmt: skip
        nobody: Any = SimpleNamespace(send=lambda *args, **fields: None, tick=lambda *args: None)
        data: Any = SimpleNamespace(content_hash="none")
        store: Any = self.store
        self.run = Training(
            task, spec, layout, nobody, store, data, self.engine, nobody, nobody, nobody, selection_of(spec), nobody, nobody,
            Guard(spec.guard, self.engine.precision),
        )  # fmt: skip

    def fill(self) -> None:
        for piece in self.engine.state.wanted_pieces():
            piece.data.copy_(values_of(piece))

    def check(self) -> None:
        import torch

        for piece in self.engine.state.wanted_pieces():
            assert torch.equal(piece.data, values_of(piece)), (piece.role, piece.name)
            piece.data.zero_()

    def save(self, job_id: str) -> None:
        import torch.distributed as dist
        from checkpoint_writer import write_checkpoint

        from orchestrator.checkpoints.commit import CommitLog
        from orchestrator.paths import JobKeys
        from orchestrator.runtime.seeding import random_states
        from orchestrator.runtime.train import job_scalars

        self.run.step, keys, store = 1, JobKeys(job_id), self.store._inner
        rank, stage, world = self.run.task.rank, self.run.layout.zero_stage, self.run.layout.world_size
        prefix = keys.checkpoint(1, 1, "u")
        state = self.engine.state
        write_checkpoint(store, prefix, rank, [*state.owned_pieces(), *state.constant_pieces()], {"random": random_states()})
        dist.barrier()
        if rank == 0:
            log, scalars = CommitLog(store, keys), job_scalars(self.run)
            log.begin_epoch("benchmark")
            log.commit(
                epoch=1, step=1, prefix=prefix, num_writers=world, world_size=world, zero_stage=stage, job_scalars=scalars
            )  # fmt: skip
        dist.barrier()

    def load(self, job_id: str) -> dict[str, float]:
        """Seconds, and bytes over all ranks."""
        import torch
        import torch.distributed as dist

        from orchestrator.paths import JobKeys
        from orchestrator.runtime.resume import end_attempt, restore_newest

        self.run.task = dataclasses.replace(self.run.task, job_id=job_id, commits=[JobKeys(job_id).commit(1, 1)])
        self.store.read_bytes = self.store.written_bytes = 0
        seconds = timed(lambda: restore_newest(self.run))
        moved = torch.tensor([self.store.read_bytes, self.store.written_bytes])
        dist.all_reduce(moved)
        end_attempt(self.run)
        self.check()
        return {"seconds": seconds, "read": int(moved[0]), "written": int(moved[1])}

    def load_by_deepspeed(self, folder: Path) -> dict[str, float]:
        seconds = timed(lambda: self.engine._engine.load_checkpoint(str(folder), tag="one"))
        self.check()
        return {"seconds": seconds}


def values_of(piece: Any) -> Any:
    """What every tensor of the state is filled with: exact in fp32, other for each tensor."""
    import torch

    offset = zlib.crc32(f"{piece.role} {piece.name}".encode()) % 1000
    return ((torch.arange(piece.start, piece.end) + offset) % 65_521).to(piece.data.dtype)


def timed(work: Any) -> float:
    """Of all ranks together."""
    import torch.distributed as dist

    dist.barrier()
    began = time.perf_counter()
    work()
    dist.barrier()
    return time.perf_counter() - began


def name_of(cell: Cell) -> str:
    return f"zero{cell[0]}-world{cell[1]}"


def save(rank: int, cell: Cell, folder: Path, layers: int) -> None:
    made = Rank(cell, rank, folder, layers)
    made.fill()
    made.save(name_of(cell))


def load(rank: int, target: Cell, folder: Path, layers: int, rounds: int) -> None:
    made = Rank(target, rank, folder, layers)
    made.fill()
    made.engine._engine.save_checkpoint(str(folder / "deepspeed" / name_of(target)), tag="one")
    ways = {name_of(source): partial(made.load, name_of(source)) for source in LOADS[target]}
    ways["deepspeed"] = partial(made.load_by_deepspeed, folder / "deepspeed" / name_of(target))
    found: dict[str, list[dict[str, float]]] = {name: [] for name in ways}
    order = random.Random(7)
    for number in range(rounds + 1):
        for name in order.sample(sorted(ways), len(ways)):
            result = ways[name]()
            if number:  # the first round is for warmth
                found[name].append(result)
    if rank == 0:
        (folder / f"{name_of(target)}.json").write_text(json.dumps(found))


def rows_of(target: Cell, found: dict[str, Any], state_bytes: int) -> Iterator[dict[str, Any]]:
    """Each source against the target's own layout, round by round."""
    own = [row["seconds"] for row in found[name_of(target)]]
    for name, loads in found.items():
        seconds = [row["seconds"] for row in loads]
        ratios = [a / b for a, b in zip(seconds, own, strict=True)]
        yield {
            "target": name_of(target), "source": name, "seconds": statistics.median(seconds), "ratio": statistics.median(ratios),
            "spread": (min(ratios), max(ratios)), "read": max(row.get("read", 0) for row in loads) / state_bytes,
            "written": max(row.get("written", 0) for row in loads),
        }  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--layers", type=int, default=8)
    asked = parser.parse_args()
    os.environ |= {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    from orchestrator.runtime.preload import preload

    preload()
    from forked import run_ranks  # not before `preload`, which wants to be the first to import torch

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for cell in sorted({source for sources in LOADS.values() for source in sources}):
            run_ranks(cell[1], partial(save, cell=cell, folder=folder, layers=asked.layers))
        for target in LOADS:
            run_ranks(target[1], partial(load, target=target, folder=folder, layers=asked.layers, rounds=asked.rounds))
        state_bytes = sum(path.stat().st_size for path in (folder / "store/jobs" / name_of((1, 1)) / "ckpt").rglob("seg-*"))
        found = {target: json.loads((folder / f"{name_of(target)}.json").read_text()) for target in LOADS}
    rows = [row for target in LOADS for row in rows_of(target, found[target], state_bytes)]
    return report(rows, state_bytes, asked.rounds)


def report(rows: list[dict[str, Any]], state_bytes: int, rounds: int) -> int:
    others = [row for row in rows if row["source"] not in (row["target"], "deepspeed")]
    own = {row["target"]: row for row in rows if row["source"] == row["target"]}
    worst = max(row["ratio"] for row in others)
    read = max(row["read"] for row in (*others, *own.values()))
    more_written = max(row["written"] - own[row["target"]]["written"] for row in others)
    cells = [
        (row["target"], row["source"], f"{row['seconds']:.3f} s", f"{row['ratio']:.2f} ({row['spread'][0]:.2f}-{row['spread'][1]:.2f})",
         f"{row['read']:.3f}" if row["read"] else "", row["written"])
        for row in rows
    ]  # fmt: skip
    return publish(
        "checkpoint_reshard", "A checkpoint opens at another world size or ZeRO stage as fast as at its own, and is read once",
        ours=round(worst, 3), bar=BAR, holds=worst <= BAR and read <= READ_BAR and more_written <= 0,
        peers={f"deepspeed at {row['target']}": round(row["ratio"], 2) for row in rows if row["source"] == "deepspeed"},
        rows=[
            f"State of {state_bytes / 1e6:.0f} MB; {rounds} rounds; ratios are medians (and extremes) of the rounds' against the load of "
            f"the target's own layout. Read at most {read:.3f} x state by all ranks together (bar {READ_BAR}).", "",
            *table(("target", "source", "load", "ratio", "read / state", "bytes written"), cells),
        ],
        rounds=rounds, state_bytes=state_bytes, read_of_state=round(read, 4), more_bytes_written=more_written,
    )  # fmt: skip


if __name__ == "__main__":
    raise SystemExit(main())
