"""State from every layout into others: the machinery of `layouts.py` and its likes, which bring models and layouts and call `main`. The
ranks of each world are forked from one process that has imported all.

Each cell (a layout) trains `STEPS` steps and saves after half of them; then each pair (source, target) loads the source's state at the
target's layout and trains the other half. Losses and a digest of all weights go to `FOLDER/result.json`.

With `MATRIX_STEPS=50` in the environment each cell trains as many steps, and none is resumed.

Every cell keeps an average of its weights, which is compared with one by hand after each step, and computes the last batch's loss with it.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import tempfile
import weakref
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import NamedTuple

TESTS = Path(__file__).parents[2]
sys.path[:0] = [str(TESTS.parent), str(TESTS), str(Path(__file__).parent)]
os.environ.update(OMP_NUM_THREADS="1", DS_ACCELERATOR="cpu", GLOO_SOCKET_IFNAME="lo")

from orchestrator.runtime.preload import preload  # noqa: E402

preload()  # here, so that not every rank does it

import torch  # noqa: E402
import torch.distributed as dist  # noqa: E402
from checkpoint_writer import write_checkpoint  # noqa: E402
from forked import run_ranks  # noqa: E402
from torch import nn  # noqa: E402

from orchestrator.checkpoints.commit import CommitLog  # noqa: E402
from orchestrator.checkpoints.restore import restore  # noqa: E402
from orchestrator.layout import layout_for  # noqa: E402
from orchestrator.paths import JobKeys  # noqa: E402
from orchestrator.runtime.engine import Engine, disable_shared_memory_op  # noqa: E402
from orchestrator.runtime.exchange import Ranks  # noqa: E402
from orchestrator.spec import JobSpec, from_dict  # noqa: E402
from orchestrator.storage import DirectoryStore  # noqa: E402
from workloads.layers import decoder_layers  # noqa: E402

BATCH, MICRO, STEPS, DECAY = 12, 2, {"net": 6}, 0.75  # of other models 20 steps
LONG_STEPS = int(os.environ.get("MATRIX_STEPS", "0"))
built = []
"""Weak references to the weights of the newest model."""


class Cell(NamedTuple):
    zero_stage: int
    world: int
    precision: str = "fp32"
    optimizer: str = "adamw"
    offload: str = ""
    """What is on the CPU: nothing, `optimizer`, `parameters` or `optimizer_parameters`; or `disk`: the optimizer in files."""
    together: int = 1
    """Tensor-parallel size."""
    model: str = "net"
    """`net`, `llama` with a tied head, `llama-untied`, `adapted` by LoRA, or one that `sequences.py`, `mixtures.py` or `float8.py` adds."""
    stages: int = 1
    """Pipeline-parallel size."""
    shared: int = 1
    """Sequence-parallel size."""
    experts: int = 1
    """Expert-parallel size."""
    hpz: int = 1
    """Ranks that keep a second copy of ZeRO 3's parameters."""
    recompute: str = "none"
    """`training.activation_checkpointing`."""

    @property
    def batch(self):
        return 2 * BATCH if self.model == "net" and self.world // self.stages == 4 else BATCH

    @property
    def steps(self):
        return LONG_STEPS or STEPS.get(self.model, 20)


MODELS = {}
"""What makes a model, by name."""
RUNS = {}
"""What trains calmly, and (source, target) of what is resumed, by name of the run."""
DISK = None
"""Folder for state in files; None: where temporary files go."""
LENGTHS, LOSSES, SETTINGS = {}, {}, {}
"""Positions of a sequence where they are not 6; what is trained where it is not `loss`; more of `training`; by model."""
INITIALISE = {}
"""What gives a model's modules their values, where it is built on the meta device; by model."""


def loss(model, batch):
    if "input_ids" in batch:
        return nn.functional.cross_entropy(model(input_ids=batch["input_ids"]).logits.flatten(0, 1).float(), batch["target"].flatten())
    return nn.functional.cross_entropy(model(batch["tokens"]).float(), batch["target"])


def main(folder, model):
    disable_shared_memory_op()
    gc.freeze()
    phases = ("calm",) if LONG_STEPS else ("calm", "resumed")
    for phase, todo in zip(phases, RUNS[model], strict=False):
        worlds = {}  # a process makes DeepSpeed's groups once
        for cell in todo:
            at = cell if phase == "calm" else cell[1]
            worlds.setdefault((at.world, at.together, at.stages, at.shared, at.experts, at.hpz), []).append(cell)
        for (world, *_), cells in worlds.items():
            run_ranks(world, partial(as_rank, folder=folder, phase=phase, cells=cells))
    found = [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]
    (folder / "result.json").write_text(json.dumps(found))


def as_rank(rank, folder, phase, cells):
    for cell in cells:
        found = calm(folder, cell, rank) if phase == "calm" else resumed(folder, *cell, rank)
        if rank == 0:
            trained = cell if phase == "calm" else cell[1]
            name = name_of(cell) if phase == "calm" else f"{name_of(cell[0])}-{name_of(cell[1])}"
            (folder / f"{phase}-{name}.json").write_text(json.dumps({"phase": phase, "cell": cell, "batch": trained.batch, **found}))


def calm(folder, cell, rank):
    """Train through, saving on the way."""
    engine, layout = build(cell)
    half = cell.steps // 2
    expected = by_hand(engine, {})
    losses = []
    for number in range(1, cell.steps + 1):
        losses.append(step(engine, layout, number, rank, cell))
        expected = by_hand(engine, expected)
        if number == half:
            save(folder, name_of(cell), engine, cell, rank)
            end_of(engine, layout, rank, cell)  # training goes on as if it had not been
    return {"losses": losses, **end_of(engine, layout, rank, cell)}


def resumed(folder, source, target, rank):
    """Another start with other weights, then the source's state over it."""
    engine, layout = build(target, seed=99)
    log = CommitLog(DirectoryStore(folder / "store"), JobKeys(name_of(source)))
    manifest = log.load_manifest(log.chain()[0])
    restore(DirectoryStore(folder / "store"), manifest, engine.state.wanted_pieces(), Ranks(torch.device("cpu")), needless=())
    engine.state.after_restore()
    engine.state.set_counters(manifest.job_scalars)
    losses = [step(engine, layout, number, rank, target) for number in range(target.steps // 2 + 1, target.steps + 1)]
    return {"losses": losses, **end_of(engine, layout, rank, target)}


def end_of(engine, layout, rank, cell):
    """`kept`: weights of the model that this rank neither needs nor has let go."""
    gc.collect()
    kept = {id(weight) for ref in built if (weight := ref()) is not None} - {id(weight) for weight in engine.module.parameters()}
    found = {"digest": digest(engine), "steps": engine.state.counters()["optimizer_steps"]["default"], "kept": len(kept)}
    # a stage of a pipeline is no model to look at
    return found if cell.stages > 1 else {**found, "averaged": averaged_loss(engine, layout, rank, cell)}


def by_hand(engine, before):
    """The averages after a step; those of the engine must be these."""
    pieces = {(piece.role, piece.name, piece.start): piece.data for piece in engine.state.wanted_pieces()}
    own = {key[1:]: data for key, data in pieces.items() if key[0] == "ema"}
    masters = {key: pieces["param", *key] for key in own}
    averages = {key: DECAY * before.get(key, master) + (1 - DECAY) * master for key, master in masters.items()}
    torch.testing.assert_close(own, averages, rtol=1e-6, atol=1e-6)
    return averages


def averaged_loss(engine, layout, rank, cell):
    """The last step's loss by the average of the weights, which then have every bit back; and by the weights themselves."""
    before = held(engine)
    with engine.average.swapped_in():
        averaged = forward_loss(engine, layout, rank, cell)
    for name, value in held(engine).items():
        assert torch.equal(value, before[name]), name
    return averaged, forward_loss(engine, layout, rank, cell)


def held(engine):
    """Copies of all that is saved, and of the weights that this rank computes with."""
    found = {(piece.role, piece.name, piece.start): piece.data.clone() for piece in engine.state.wanted_pieces()}
    return found | {name: without_padding(p).detach().clone() for name, p in engine.module.named_parameters()}


def without_padding(parameter):
    """What fills a ZeRO 3 partition up was never set."""
    if not hasattr(parameter, "ds_tensor"):
        return parameter
    size = parameter.partition_numel()
    return parameter.ds_tensor[: max(0, min(size, parameter.ds_numel - dist.get_rank() * size))]


def forward_loss(engine, layout, rank, cell):
    """By the batch's own statistics, which are the same at any world size, and without a trace in the running ones."""
    buffers = {name: buffer.clone() for name, buffer in engine.module.named_buffers()}
    engine.module.eval()
    for module in engine.module.modules():
        if isinstance(module, nn.BatchNorm1d):
            module.train()
    with torch.no_grad():
        compute = LOSSES.get(cell.model, loss)
        losses = [compute(engine.module, engine.to_device(batch)) for batch in micro_batches(layout, cell.steps, rank, cell.model)]
        for name, buffer in engine.module.named_buffers():
            buffer.copy_(buffers[name])
    engine.module.train()
    total = torch.stack(losses).double().mean()
    dist.all_reduce(total)
    return float(total / layout.world_size)


def spec_of(cell, seed=1):
    on_disk = cell.offload == "disk"
    offloaded = {f"offload_{part}": "cpu" for part in cell.offload.split("_") if part and not on_disk}
    offloaded |= {"offload_optimizer": "nvme", "nvme_path": "/nowhere"} if on_disk else {}
    values = {
        "workload": {"name": "net", "entrypoint": "net:Net"}, "model": {"name": "net"}, "data": {"name": "net"},
        "training": {
            "max_steps": cell.steps, "global_batch_size": cell.batch, "micro_batch_size": MICRO, "precision": cell.precision,
            "ema_decay": DECAY, "activation_checkpointing": cell.recompute, "seed": seed, **SETTINGS.get(cell.model, {}),
        },
        "resources": {"num_workers": cell.world}, "optimizer": {"name": cell.optimizer, "lr": 0.01},
        "parallelism": {
            "zero_stage": cell.zero_stage, "tensor_parallel_size": cell.together, "pipeline_parallel_size": cell.stages,
            "sequence_parallel_size": cell.shared, "expert_parallel_size": cell.experts, "zero_hpz_partition_size": cell.hpz, **offloaded,
        },
    }  # fmt: skip
    return from_dict(JobSpec, values)


def build(cell, seed=1):
    spec = spec_of(cell, seed)
    torch.manual_seed(seed)
    global built
    initialise = INITIALISE.get(cell.model)
    with torch.device("meta") if initialise else nullcontext():
        model = MODELS[cell.model]()
    fields = {"input_ids": 0, "target": 0} if cell.shared > 1 else {}
    layers = getattr(type(model), "layers", None) or partial(decoder_layers, tokens=lambda batch: batch["input_ids"])
    built = [] if initialise else [weakref.ref(weight) for weight in model.parameters()]  # what never had memory cannot keep it
    disk = Path(tempfile.mkdtemp(dir=DISK)) if cell.offload == "disk" else None
    engine = Engine(
        model, LOSSES.get(cell.model, loss), spec, layout_for(spec), torch.device("cpu"), layers=layers, sequence_fields=fields,
        initialise=initialise, disk=disk,
    )  # fmt: skip
    return engine, layout_for(spec)


def step(engine, layout, number, rank, cell):
    """The step's loss over all ranks."""
    lr = 0.01 / number if cell.model == "net" else 0.01
    report = engine.step(micro_batches(layout, number, rank, cell.model), lr)
    total = report.loss.clone()
    dist.all_reduce(total)
    return float(total / layout.world_size), float(report.grad_norm)


def micro_batches(layout, number, rank, model):
    """Net: a token from a token. Llama: sequences that go on by threes from a first token."""
    generator = torch.Generator().manual_seed(number)
    count = layout.global_batch_size // MICRO
    tokens = torch.randint(0, 13, (count, MICRO), generator=generator)
    for index in range(layout.data_parallel_rank(rank), count, layout.data_parallel_size):
        line = (tokens[index][:, None] + 3 * torch.arange(1 + LENGTHS.get(model, 6))) % 13
        if model == "net":
            yield {"tokens": tokens[index], "target": (tokens[index] * 3 + 1) % 13}
        else:
            yield {"input_ids": line[:, :-1], "target": line[:, 1:]}


def save(folder, job_id, engine, cell, rank):
    store, keys = DirectoryStore(folder / "store"), JobKeys(job_id)
    log, at = CommitLog(store, keys), cell.steps // 2
    engine.state.average_buffers()
    write_checkpoint(store, keys.checkpoint(at, 1, "u"), rank, [*engine.state.owned_pieces(), *engine.state.constant_pieces()], {})
    dist.barrier()
    if rank == 0:
        log.begin_epoch("matrix")
        log.commit(
            epoch=1, step=at, prefix=keys.checkpoint(at, 1, "u"), num_writers=cell.world, world_size=cell.world,
            zero_stage=cell.zero_stage, job_scalars=engine.state.counters(),
        )  # fmt: skip


def digest(engine):
    """Sums and sums of squares of all that each rank holds: equal to the last bit for equal state at one layout."""
    engine.state.average_buffers()
    found = {}
    for piece in engine.state.wanted_pieces():
        values = piece.data.double()
        found.setdefault(f"{piece.role}:{piece.name}", []).append([float(values.sum()), float((values**2).sum())])
    everywhere = [None] * dist.get_world_size()
    dist.all_gather_object(everywhere, found)
    return everywhere


def name_of(cell):
    return "-".join(map(str, cell))
