"""Claim: a save stops the training for at most a fifth of the time that PyTorch's asynchronous save does.

    python benchmarks/checkpoint_stall.py [--rounds 12] [--megabytes 540]

One process computes products of matrices in the place of a forward and a backward pass, and saves a state of fp32 weights and two moments,
in turn by: ours (`StagingRing`, with the uploader as a process of its own, as in a job), `torch.distributed.checkpoint.async_save`, and
DeepSpeed's way (`torch.save` into a file and fsync, while training waits). The stall is what the loop waits for: in the call, and before
the state may change. The loss is by how much a block of steps that begins with a save is longer than one without: what copies and uploads
take from the computation counts there too. Each save is durable before the next begins. The first round makes memory and counts for nobody.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from record import ROOT, publish, table

sys.path.insert(0, str(ROOT))
BAR = 0.2
WIDTH = 1024
STEPS = 6  # of a block
PRODUCTS = 24  # of a step


class Ours:
    """The ring of a rank and the uploader process of its node."""

    def __init__(self, folder: Path, tensors: dict[str, Any]) -> None:
        from orchestrator.checkpoints.pieces import StatePiece
        from orchestrator.checkpoints.stage import StagingRing
        from orchestrator.spec import StorageSpec, to_dict
        from orchestrator.supervision.uploader_child import UploaderChild

        self._pieces = [
            StatePiece(name=name.split(":")[1], role=name.split(":")[0], global_shape=tuple(x.shape), start=0, data=x.view(-1))
            for name, x in tensors.items()
        ]
        self._memory = Path(tempfile.mkdtemp(prefix="slabs-", dir="/dev/shm"))
        self._server = socket.socket(socket.AF_UNIX)
        self._server.bind(str(folder / "s"))
        self._server.listen()
        opened = {
            "storage": to_dict(StorageSpec(url=(folder / "ours").as_uri())), "folder": str(self._memory), "stem": "stall",
            "agent_socket": str(folder / "s"), "bytes_per_s": 0,
        }  # fmt: skip
        self._child = UploaderChild(opened, os.environ, folder / "uploader.log", print)
        threading.Thread(target=self._listen, daemon=True).start()
        self._ring = StagingRing(self._memory, "stall-0", 2)
        self._ring.prepare(self._pieces)
        self._step = 0
        self._saved = threading.Semaphore(0)

    def _listen(self) -> None:
        connection, _ = self._server.accept()
        for line in connection.makefile():
            self._child.heard(json.loads(line))
            self._saved.release()

    def save(self) -> float:
        from orchestrator.paths import JobKeys

        self._step += 1
        prefix, began = JobKeys("stall").checkpoint(self._step, 1, "u"), time.monotonic()

        def done(slab: Path) -> None:
            self._child.take({"rank": 0, "writer": 0, "epoch": 1, "step": self._step, "checkpoint": prefix, "slab": str(slab)})

        self._ring.stage(
            self._pieces, list, lambda: None, done, job_id="stall", epoch=1, step=self._step, prefix=prefix, writer=0, scalars={}
        )
        return time.monotonic() - began

    def before_change(self) -> float:
        began = time.monotonic()
        self._ring.finish()
        return time.monotonic() - began

    def wait(self) -> None:
        self._saved.acquire()

    def close(self) -> None:
        self._child.close()
        self._memory.rmdir()


def measure(folder: Path, megabytes: int, rounds: int) -> list[dict[str, float]]:
    import torch
    import torch.distributed as dist
    import torch.distributed.checkpoint as dcp

    from orchestrator.ports import free_port

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{free_port()}", rank=0, world_size=1)
    count = megabytes * 1_000_000 // (3 * 4 * WIDTH * WIDTH)
    roles = ("param", "exp_avg", "exp_avg_sq")
    tensors = {f"{role}:layer.{n}.weight": torch.randn(WIDTH, WIDTH) for n in range(count) for role in roles}
    ours, number = Ours(folder, tensors), 0
    futures: list[Any] = []

    def by_dcp() -> float:
        began = time.monotonic()
        futures.append(dcp.async_save(tensors, checkpoint_id=str(folder / f"dcp-{number}")))
        return time.monotonic() - began

    def by_file() -> float:
        began = time.monotonic()
        with (folder / f"file-{number}").open("wb") as file:
            torch.save(tensors, file)
            file.flush()
            os.fsync(file.fileno())
        return time.monotonic() - began

    nothing = Arm(lambda: 0.0, lambda: 0.0, lambda: None)
    arms = {
        "ours": Arm(ours.save, ours.before_change, ours.wait),
        "dcp.async_save": Arm(by_dcp, lambda: 0.0, lambda: futures.pop().result()),
        "torch.save": Arm(by_file, lambda: 0.0, lambda: None),
    }
    a, b = torch.randn(WIDTH, WIDTH), torch.empty(WIDTH, WIDTH)

    def block(arm: Arm) -> tuple[float, float]:
        """(stall, seconds of the whole block)."""
        began, stalled = time.monotonic(), arm.save()
        for step in range(STEPS):
            for _ in range(PRODUCTS):
                torch.mm(a, a, out=b)
            if step == 0:
                stalled += arm.before_change()
        seconds = time.monotonic() - began
        arm.wait()
        return stalled, seconds

    rows = []
    for number in range(rounds + 1):
        row: dict[str, float] = {}
        _, calm = block(nothing)
        for name in list(arms) if number % 2 else reversed(list(arms)):
            row[name], seconds = block(arms[name])
            row[f"{name} loss"] = seconds - calm
        rows.append(row)
        print(number, f"calm {calm:.2f} s", {name: f"{seconds * 1000:.1f} ms" for name, seconds in row.items()}, flush=True)
        _clean(folder, number)
    ours.close()
    dist.destroy_process_group()
    return rows[1:]


@dataclass(frozen=True)
class Arm:
    save: Callable[[], float]
    before_change: Callable[[], float]
    """Seconds waited before the state may change."""
    wait: Callable[[], None]
    """Until it is durable."""


def _clean(folder: Path, number: int) -> None:
    import shutil

    shutil.rmtree(folder / f"dcp-{number}")
    (folder / f"file-{number}").unlink()
    shutil.rmtree(folder / "ours" / "jobs" / "stall" / "ckpt")


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--megabytes", type=int, default=540)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rows = measure(Path(folder), asked.megabytes, asked.rounds)
    ratios = sorted(row["ours"] / row["dcp.async_save"] for row in rows)
    stalls = {name: sorted(row[name] for row in rows) for name in rows[0]}
    ratio = statistics.median(ratios)
    lines = [(name, *(f"{value * 1000:.1f}" for value in (statistics.median(x), x[0], x[-1]))) for name, x in sorted(stalls.items())]
    return publish(
        "checkpoint_stall", "A save stops the training for at most a fifth of the time that PyTorch's asynchronous save does",
        ours=round(ratio, 3), bar=BAR, holds=ratio <= BAR, n=asked.rounds, megabytes=asked.megabytes,
        ratio_range=[round(ratios[0], 3), round(ratios[-1], 3)],
        peers={name: round(statistics.median(x), 4) for name, x in stalls.items() if name != "ours"},
        rows=table(("stall, or loss of the block", "median ms", "least", "most"), lines),
    )  # fmt: skip


if __name__ == "__main__":
    raise SystemExit(main())
