"""Claim: a checkpoint goes to S3 and comes back several times faster than by the usual ways, checksums included, for little CPU.

    pip install -c constraints.txt -e ".[peers]"
    python benchmarks/checkpoint_transfer.py [--n 7] [--server fast|seaweedfs] [--seed 1]

The state is 0.54 GB in fp32: weights and both moments of AdamW of a 45-million-parameter GPT. `ours` is what a rank and its uploader do
(copy into the slab, CRC-64 of every block, segments, index), and `restore` (index, ranges, checksums, cutting). Peers, each as its
project uses it: DCP with s3torchconnector; torch.save with boto3; torch.save with pyarrow's S3 file system, as Ray Train copies a
checkpoint. A restore ends when the bytes are in tensors that were there before, and they are compared bit by bit. All take turns in one
process, in a drawn order, after one round that does not count; a ratio is taken per round. CPU is that of this process alone; the server
has its own.
"""

from __future__ import annotations

import argparse
import gc
import io
import os
import random
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from record import ROOT, publish, table

from object_stores import KEYS, fast_store, seaweedfs, spec  # isort: skip  - `record` puts it on the path

sys.path.insert(0, str(ROOT))
OURS = "ours"
DCP, BOTO3, PYARROW = "DCP + s3torchconnector", "torch.save + boto3", "torch.save + pyarrow"
BARS = {
    "fast": {
        **{f"save, {name}": bar for name, bar in ((DCP, 2.5), (BOTO3, 4.0), (PYARROW, 4.0))},
        **{f"restore, {name}": bar for name, bar in ((DCP, 3.0), (BOTO3, 3.5), (PYARROW, 4.5))},
    },
    "seaweedfs": {f"restore, {name}": 2.5 for name in (DCP, BOTO3, PYARROW)},
}
CPU_BAR = 0.35  # CPU seconds per GB, save and restore
BUCKET, REGION = "orchestrator", "us-east-1"
Tensors = dict[str, Any]


def make_state(seed: int) -> Tensors:
    """`<role>/<name>` -> tensor: 12 layers of width 512 and an embedding of 14,000 words."""
    import torch

    shapes: dict[str, tuple[int, ...]] = {"embedding": (14_000, 512)}
    for layer in range(12):
        shapes |= {f"h.{layer}.attention": (1536, 512), f"h.{layer}.projection": (512, 512), f"h.{layer}.norm": (512,)}
        shapes |= {f"h.{layer}.up": (2048, 512), f"h.{layer}.down": (512, 2048), f"h.{layer}.bias": (2048,)}
    generator = torch.Generator().manual_seed(seed)
    roles = ("param", "exp_avg", "exp_avg_sq")
    return {f"{role}/{name}": torch.randn(shape, generator=generator) for role in roles for name, shape in shapes.items()}


class Ours:
    """The memory that is staged into is there from the first save on, as in a job."""

    def __init__(self, endpoint: str, folder: Path) -> None:
        from orchestrator.storage import open_store
        from orchestrator.supervision.uploader import CONNECTIONS

        self._store = open_store(spec(endpoint, BUCKET, "ours"), KEYS)
        self._folder = folder
        self._slab: Any = None
        self._pool = ThreadPoolExecutor(CONNECTIONS)

    def save(self, state: Tensors, key: str) -> None:
        import torch

        from orchestrator.checkpoints.slab import Slab, size_of
        from orchestrator.checkpoints.stage import pack_into, rows_of
        from orchestrator.checkpoints.upload import store_index, store_rows

        pieces = self._pieces(state)
        rows = rows_of(pieces)
        self._slab = self._slab or Slab.create(self._folder / "rank-0.slab", size_of(rows))
        crcs = pack_into(torch.frombuffer(self._slab.content, dtype=torch.uint8), pieces, rows)
        stored = store_rows(self._store, f"{key}/", 0, rows, self._slab.content, self._pool, crcs=crcs)
        store_index(self._store, f"{key}/", 0, stored, {})

    def load(self, state: Tensors, key: str) -> None:
        from orchestrator.checkpoints.manifest import assemble, decode_index
        from orchestrator.checkpoints.restore import restore
        from orchestrator.paths import index_key

        name = index_key(f"{key}/", 0)
        index = decode_index(self._store.get(name), name)
        header = {"job_id": "bench", "step": 1, "epoch": 1, "prefix": f"{key}/", "world_size": 1, "zero_stage": 0, "job_scalars": {}}
        restore(self._store, assemble([index], **header), self._pieces(state))

    @staticmethod
    def _pieces(state: Tensors) -> list[Any]:
        from orchestrator.checkpoints.pieces import StatePiece

        named = [(*path.split("/"), tensor) for path, tensor in state.items()]
        return [StatePiece(name=name, role=role, global_shape=tuple(t.shape), start=0, data=t.view(-1)) for role, name, t in named]


class Dcp:
    """s3torchconnector's readers and writers take no endpoint, its client does: they get a file system with such a client."""

    def __init__(self, endpoint: str) -> None:
        from s3torchconnector import S3ClientConfig
        from s3torchconnector._s3client import S3Client
        from s3torchconnector.dcp import S3FileSystem

        client = S3Client(REGION, endpoint=endpoint, s3client_config=S3ClientConfig(force_path_style=True))
        self._files = S3FileSystem(REGION, s3_client=client)

    def save(self, state: Tensors, key: str) -> None:
        import torch.distributed.checkpoint as dcp
        from s3torchconnector.dcp import S3StorageWriter

        writer = S3StorageWriter(REGION, f"s3://{BUCKET}/dcp/{key}/", overwrite=True)
        writer.fs = self._files
        dcp.save(state, storage_writer=writer, no_dist=True)

    def load(self, state: Tensors, key: str) -> None:
        import torch.distributed.checkpoint as dcp
        from s3torchconnector.dcp import S3StorageReader

        reader = S3StorageReader(REGION, f"s3://{BUCKET}/dcp/{key}/")
        self._files._reader_constructor = reader.fs._reader_constructor  # the one for DCP
        reader.fs = self._files
        dcp.load(state, storage_reader=reader, no_dist=True)


class Boto3:
    def __init__(self, endpoint: str) -> None:
        self._client = boto3_client(endpoint)

    def save(self, state: Tensors, key: str) -> None:
        import torch

        buffer = io.BytesIO()
        torch.save(state, buffer)
        buffer.seek(0)
        self._client.upload_fileobj(buffer, BUCKET, f"boto3/{key}")

    def load(self, state: Tensors, key: str) -> None:
        import torch

        buffer = io.BytesIO()
        self._client.download_fileobj(BUCKET, f"boto3/{key}", buffer)
        buffer.seek(0)
        fill(state, torch.load(buffer, weights_only=True))


class Pyarrow:
    """The arguments are those of Ray Train (`ray.train._internal.storage`)."""

    def __init__(self, endpoint: str) -> None:
        from pyarrow.fs import S3FileSystem

        scheme, _, address = endpoint.partition("://")
        self._remote = S3FileSystem(
            access_key=KEYS["AWS_ACCESS_KEY_ID"], secret_key=KEYS["AWS_SECRET_ACCESS_KEY"], endpoint_override=address, scheme=scheme,
            region=REGION,
        )  # fmt: skip

    def save(self, state: Tensors, key: str) -> None:
        import pyarrow.fs
        import torch

        with tempfile.TemporaryDirectory() as folder:
            torch.save(state, Path(folder, "state.pt"))
            pyarrow.fs.copy_files(
                folder, f"{BUCKET}/pyarrow/{key}", destination_filesystem=self._remote, use_threads=False, chunk_size=64 << 20
            )

    def load(self, state: Tensors, key: str) -> None:
        import pyarrow.fs
        import torch

        with tempfile.TemporaryDirectory() as folder:
            pyarrow.fs.copy_files(f"{BUCKET}/pyarrow/{key}", folder, source_filesystem=self._remote, chunk_size=64 << 20)
            fill(state, torch.load(Path(folder, "state.pt"), weights_only=True))


def fill(state: Tensors, found: Tensors) -> None:
    for name, tensor in state.items():
        tensor.copy_(found[name])


def boto3_client(endpoint: str) -> Any:
    import boto3
    from botocore.config import Config

    return boto3.client("s3", endpoint_url=endpoint, region_name=REGION, config=Config(s3={"addressing_style": "path"}))


def timed(work: Callable[[], None]) -> tuple[float, float]:
    """(seconds, CPU seconds of this process)."""
    gc.collect()
    used = [resource.getrusage(resource.RUSAGE_SELF)]
    began = time.monotonic()
    work()
    taken = time.monotonic() - began
    used.append(resource.getrusage(resource.RUSAGE_SELF))
    before, after = (usage.ru_utime + usage.ru_stime for usage in used)
    return taken, after - before


def round_of(ways: dict[str, Any], state: Tensors, empty: Tensors, key: str, rng: random.Random) -> dict[str, tuple[float, ...]]:
    """Way -> (save s, its CPU s, restore s, its CPU s)."""
    import torch

    taken: dict[str, tuple[float, ...]] = {}
    for name in rng.sample(list(ways), len(ways)):
        for tensor in empty.values():
            tensor.zero_()
        saved = timed(partial(ways[name].save, state, key))
        restored = timed(partial(ways[name].load, empty, key))
        wrong = [path for path, tensor in state.items() if not torch.equal(tensor, empty[path])]
        assert not wrong, f"{name}: {wrong[0]} came back different"
        taken[name] = (*saved, *restored)
    return taken


def remove_all(endpoint: str) -> None:
    client = boto3_client(endpoint)
    for page in client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET):
        for entry in page.get("Contents", ()):
            client.delete_object(Bucket=BUCKET, Key=entry["Key"])


def measure(endpoint: str, folder: Path, rounds: int, seed: int) -> tuple[list[dict[str, tuple[float, ...]]], float]:
    """Of each round; the size of the state in GB."""
    import torch

    torch.set_num_threads(1)
    state = make_state(seed)
    empty = {name: torch.empty_like(tensor) for name, tensor in state.items()}
    ways = {OURS: Ours(endpoint, folder), DCP: Dcp(endpoint), BOTO3: Boto3(endpoint), PYARROW: Pyarrow(endpoint)}
    rng, found = random.Random(seed), []
    for number in range(rounds + 1):
        found.append(round_of(ways, state, empty, f"round-{number}", rng))
        remove_all(endpoint)
        print("; ".join(f"{name} {' / '.join(f'{s:.2f}' for s in figures)}" for name, figures in found[-1].items()), flush=True)
    return found[1:], sum(tensor.nbytes for tensor in state.values()) / 1e9


def spread(values: list[float]) -> str:
    return f"{statistics.median(values):.2f} ({min(values):.2f}-{max(values):.2f})"


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--n", type=int, default=7)
    parser.add_argument("--server", choices=sorted(BARS), default="fast")
    parser.add_argument("--seed", type=int, default=1)
    asked = parser.parse_args()
    os.environ |= {**KEYS, "AWS_EC2_METADATA_DISABLED": "true"}
    load = os.getloadavg()[0]
    with {"fast": fast_store, "seaweedfs": seaweedfs}[asked.server]() as endpoint, tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        rounds, gb = measure(endpoint, Path(folder), asked.n, asked.seed)
    peers = [name for name in rounds[0] if name != OURS]
    ratios = {
        f"{what}, {name}": [r[name][column] / r[OURS][column] for r in rounds]
        for what, column in (("save", 0), ("restore", 2)) for name in sorted(peers)
    }  # fmt: skip
    cpu = {what: [r[OURS][column] / gb for r in rounds] for what, column in (("save", 1), ("restore", 3))}
    bars = BARS[asked.server]
    rows = [
        (name, spread([r[name][0] for r in rounds]), spread([r[name][1] / gb for r in rounds]),
         spread([r[name][2] for r in rounds]), spread([r[name][3] / gb for r in rounds]))
        for name in (OURS, *sorted(peers))
    ]  # fmt: skip
    compared = [(name, spread(values), bars.get(name, "none")) for name, values in ratios.items()]
    compared += [(f"CPU s/GB, {what}, ours", spread(values), CPU_BAR) for what, values in cpu.items()]
    holds = all(statistics.median(ratios[name]) >= bar for name, bar in bars.items())
    holds = holds and all(statistics.median(values) <= CPU_BAR for values in cpu.values())
    medians = {name: round(statistics.median(values), 2) for name, values in ratios.items()}
    return publish(
        f"checkpoint_transfer_{asked.server}", f"A checkpoint to and from S3 ({asked.server}) against the usual ways",
        ours=medians | {f"CPU s/GB, {what}": round(statistics.median(values), 3) for what, values in cpu.items()},
        bar=bars | {f"CPU s/GB, {what}": CPU_BAR for what in cpu}, holds=holds, n=asked.n, seed=asked.seed,
        gb=round(gb, 3), load=round(load, 1),
        versions={name: version(name) for name in ("boto3", "pyarrow", "s3torchconnector")},
        rows=[
            f"Median (min-max) of {asked.n} rounds, {gb:.2f} GB; every restored tensor was equal. Load average before: {load:.1f}.", "",
            *table(("way", "save s", "CPU s/GB", "restore s", "CPU s/GB"), rows), "",
            "How many times as long the peers took:", "", *table(("", "ratio", "bar"), compared),
        ],
    )  # fmt: skip


if __name__ == "__main__":
    raise SystemExit(main())
