"""State from every layout into others: `python matrix.py FOLDER` forks the ranks of each world from one process that has imported all.

For each (stage, world, precision) it trains six steps and saves after three; then each pair (source, target) loads the source's
state at the target's layout and trains steps four to six. Losses and a digest of all weights go to `FOLDER/result.json`.
"""

from __future__ import annotations

import datetime
import json
import os
import socket
import sys
from pathlib import Path

TESTS = Path(__file__).parents[2]
sys.path[:0] = [str(TESTS.parent)]
os.environ.update(OMP_NUM_THREADS="1", DS_ACCELERATOR="cpu", GLOO_SOCKET_IFNAME="lo")

import torch  # noqa: E402
import torch.distributed as dist  # noqa: E402
from torch import nn  # noqa: E402

from orchestrator.checkpoints.commit import CommitLog  # noqa: E402
from orchestrator.checkpoints.restore import restore  # noqa: E402
from orchestrator.checkpoints.write import write_checkpoint  # noqa: E402
from orchestrator.layout import layout_for  # noqa: E402
from orchestrator.paths import JobKeys  # noqa: E402
from orchestrator.runtime.engine import Engine, disable_shared_memory_op  # noqa: E402
from orchestrator.spec import JobSpec, from_dict  # noqa: E402
from orchestrator.storage import DirectoryStore  # noqa: E402

BATCH, STEPS, AT = 12, 6, 3
SAME = [(stage, world, "fp32", "adamw") for stage in range(4) for world in (1, 2, 3)]
SAME += [(stage, 2, "bf16", "adamw") for stage in range(4)] + [(stage, 2, "fp32", "sgd") for stage in (0, 1, 3)]
CROSS = [((s, 1 + (s + t) % 3, "fp32", "adamw"), (t, 1 + (s + 2 * t + 1) % 3, "fp32", "adamw")) for s in range(4) for t in range(4)]
CROSS += [((s, 2, "bf16", "adamw"), ((s + 1) % 4, 2, "bf16", "adamw")) for s in range(4)]
CROSS += [((0, 2, "fp32", "sgd"), (3, 2, "fp32", "sgd")), ((3, 2, "fp32", "sgd"), (1, 2, "fp32", "sgd"))]
PAIRS = [(layout, layout) for layout in SAME] + [pair for pair in CROSS if pair[0] != pair[1]]


class Net(nn.Module):
    """Odd sizes, a tied weight, a frozen layer, running statistics."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(13, 7)
        self.frozen = nn.Linear(7, 7)
        self.hidden = nn.Linear(7, 11)
        self.norm = nn.BatchNorm1d(11)
        self.back = nn.Linear(11, 7)
        self.head = nn.Linear(7, 13, bias=False)
        self.head.weight = self.embedding.weight
        self.frozen.requires_grad_(False)

    def forward(self, tokens):
        x = torch.tanh(self.frozen(self.embedding(tokens)))
        return self.head(self.back(torch.relu(self.norm(self.hidden(x)))))


def loss(model, batch):
    return nn.functional.cross_entropy(model(batch["tokens"]).float(), batch["target"])


def main(folder):
    disable_shared_memory_op()
    for phase, todo in (("calm", SAME), ("resumed", PAIRS)):
        for world in (1, 2, 3):
            cells = [cell for cell in todo if (cell if phase == "calm" else cell[1])[1] == world]
            in_world(world, folder, phase, cells)
    found = [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]
    (folder / "result.json").write_text(json.dumps(found))


def in_world(world, folder, phase, cells):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    children = []
    for rank in range(world):
        child = os.fork()
        if child == 0:
            code = 1
            try:
                as_rank(rank, world, port, folder, phase, cells)
                code = 0
            finally:
                sys.stderr.flush()
                os._exit(code)
        children.append(child)
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    if any(codes):
        raise SystemExit(f"ranks of {phase} world {world} ended with {codes}")


def as_rank(rank, world, port, folder, phase, cells):
    import traceback

    os.environ.update(
        RANK=str(rank), WORLD_SIZE=str(world), LOCAL_RANK=str(rank), LOCAL_SIZE=str(world), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port)
    )
    torch.set_num_threads(1)
    dist.init_process_group("gloo", timeout=datetime.timedelta(seconds=60))
    for number, cell in enumerate(cells):
        try:
            found = calm(folder, cell, rank) if phase == "calm" else resumed(folder, *cell, rank)
        except BaseException:
            traceback.print_exc()
            raise
        if rank == 0:
            (folder / f"{phase}-{world}-{number}.json").write_text(json.dumps({"phase": phase, "cell": cell, **found}))


def calm(folder, cell, rank):
    """Train through, saving on the way."""
    engine, layout = build(cell)
    losses = [step(engine, layout, number, rank) for number in range(1, AT + 1)]
    save(folder, name_of(cell), engine, cell, rank)
    losses += [step(engine, layout, number, rank) for number in range(AT + 1, STEPS + 1)]
    return {"losses": losses, "digest": digest(engine), "steps": engine.state.counters()["optimizer_steps"]["default"]}


def resumed(folder, source, target, rank):
    """Another start with other weights, then the source's state over it."""
    engine, layout = build(target, seed=99)
    log = CommitLog(DirectoryStore(folder / "store"), JobKeys(name_of(source)))
    manifest = log.load_manifest(log.chain()[0])
    restore(DirectoryStore(folder / "store"), manifest, engine.state.wanted_pieces())
    engine.state.after_restore()
    engine.state.set_counters(manifest.job_scalars)
    losses = [step(engine, layout, number, rank) for number in range(AT + 1, STEPS + 1)]
    return {"losses": losses, "digest": digest(engine), "steps": engine.state.counters()["optimizer_steps"]["default"]}


def build(cell, seed=1):
    stage, world, precision, optimizer = cell
    values = {
        "workload": {"name": "net", "entrypoint": "net:Net"}, "model": {"name": "net"}, "data": {"name": "net"},
        "training": {"max_steps": STEPS, "global_batch_size": BATCH, "micro_batch_size": 2, "precision": precision},
        "resources": {"num_workers": world}, "parallelism": {"zero_stage": stage}, "optimizer": {"name": optimizer, "lr": 0.01},
    }  # fmt: skip
    spec = from_dict(JobSpec, values)
    torch.manual_seed(seed)
    return Engine(Net(), loss, spec, layout_for(spec), torch.device("cpu")), layout_for(spec)


def step(engine, layout, number, rank):
    """The step's loss over all ranks."""
    report = engine.step(micro_batches(layout, number, rank), 0.01 / number)
    total = report.loss.clone()
    dist.all_reduce(total)
    return float(total / layout.world_size), float(report.grad_norm)


def micro_batches(layout, number, rank):
    generator = torch.Generator().manual_seed(number)
    tokens = torch.randint(0, 13, (BATCH // 2, 2), generator=generator)
    for index in range(rank, BATCH // 2, layout.world_size):
        yield {"tokens": tokens[index], "target": (tokens[index] * 3 + 1) % 13}


def save(folder, job_id, engine, cell, rank):
    store, keys = DirectoryStore(folder / "store"), JobKeys(job_id)
    log = CommitLog(store, keys)
    engine.state.average_buffers()
    write_checkpoint(store, keys.checkpoint(AT, 1, "u"), rank, engine.state.owned_pieces(), {})
    dist.barrier()
    if rank == 0:
        log.begin_epoch("matrix")
        stage, world, _, _ = cell
        log.commit(
            epoch=1, step=AT, prefix=keys.checkpoint(AT, 1, "u"), num_writers=world, world_size=world, zero_stage=stage,
            job_scalars=engine.state.counters(),
        )  # fmt: skip


def digest(engine):
    """Sums and sums of squares of all that this rank holds: equal to the last bit for equal state at one layout."""
    engine.state.average_buffers()
    found = {}
    for piece in engine.state.wanted_pieces():
        values = piece.data.double()
        found.setdefault(f"{piece.role}:{piece.name}", []).append([float(values.sum()), float((values**2).sum())])
    return found


def name_of(cell):
    return "-".join(map(str, cell))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
