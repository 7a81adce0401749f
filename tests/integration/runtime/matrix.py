"""State from every layout into others: `python matrix.py FOLDER net|llama|pipeline` forks the ranks of each world from one process that
has imported all.

Each cell (a layout) trains `STEPS` steps and saves after half of them; then each pair (source, target) loads the source's state at the
target's layout and trains the other half. Losses and a digest of all weights go to `FOLDER/result.json`.

With `MATRIX_STEPS=50` in the environment each cell trains as many steps, and none is resumed.

Every cell keeps an average of its weights, which is compared with one by hand after each step, and computes the last batch's loss with it.
"""

from __future__ import annotations

import datetime
import gc
import json
import os
import socket
import sys
import tempfile
import weakref
from contextlib import nullcontext
from pathlib import Path
from typing import NamedTuple

TESTS = Path(__file__).parents[2]
sys.path[:0] = [str(TESTS.parent)]
os.environ.update(OMP_NUM_THREADS="1", DS_ACCELERATOR="cpu", GLOO_SOCKET_IFNAME="lo")

from orchestrator.runtime.preload import preload  # noqa: E402

preload()  # here, so that not every rank does it

import torch  # noqa: E402
import torch.distributed as dist  # noqa: E402
from torch import nn  # noqa: E402
from transformers import LlamaConfig, LlamaForCausalLM  # noqa: E402

from orchestrator.checkpoints.commit import CommitLog  # noqa: E402
from orchestrator.checkpoints.restore import restore  # noqa: E402
from orchestrator.checkpoints.write import write_checkpoint  # noqa: E402
from orchestrator.layout import layout_for  # noqa: E402
from orchestrator.paths import JobKeys  # noqa: E402
from orchestrator.runtime.engine import Engine, disable_shared_memory_op  # noqa: E402
from orchestrator.spec import JobSpec, from_dict  # noqa: E402
from orchestrator.storage import DirectoryStore  # noqa: E402
from workloads.adapters import Adapters  # noqa: E402
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


SAME = [Cell(stage, world) for stage in range(4) for world in (1, 2, 3)]
SAME += [Cell(stage, 2, "bf16") for stage in range(4)] + [Cell(stage, 2, optimizer="sgd") for stage in (0, 1, 3)]
SAME += [Cell(stage, 2, optimizer="lion") for stage in range(4)] + [Cell(stage, 3, "bf16", "lion") for stage in (0, 2)]
CROSS = [(Cell(s, 1 + (s + t) % 3), Cell(t, 1 + (s + 2 * t + 1) % 3)) for s in range(4) for t in range(4)]
CROSS += [(Cell(s, 2, "bf16"), Cell((s + 1) % 4, 2, "bf16")) for s in range(4)]
CROSS += [(Cell(0, 2, optimizer="sgd"), Cell(3, 2, optimizer="sgd")), (Cell(3, 2, optimizer="sgd"), Cell(1, 2, optimizer="sgd"))]
CROSS += [(Cell(s, 2, optimizer="lion"), Cell((s + 1) % 4, 1 + s % 3, optimizer="lion")) for s in range(4)]
MUON = [Cell(stage, world, optimizer="muon") for stage, world in ((0, 1), (0, 2), (1, 2), (1, 3), (2, 2), (3, 2), (3, 3))]
MUON += [Cell(stage, 2, "bf16", "muon") for stage in (0, 1, 3)]
ADAFACTOR = [Cell(0, world, optimizer="adafactor") for world in (1, 2)] + [Cell(0, 2, "bf16", "adafactor")]
SAME += MUON + ADAFACTOR
CROSS += [(source, target) for source, target in zip(MUON[1:7], MUON[2:7] + MUON[:1], strict=True)]
CROSS += [(Cell(0, 1, optimizer="adafactor"), Cell(0, 2, optimizer="adafactor"))]
OFFLOADED = [Cell(stage, 2, offload="optimizer") for stage in (1, 2, 3)] + [
    Cell(3, 2, offload="parameters"), Cell(3, 2, offload="optimizer_parameters"), Cell(1, 2, optimizer="sgd", offload="optimizer"),
    Cell(2, 2, optimizer="lion", offload="optimizer"), Cell(1, 2, "bf16", offload="optimizer"),
    Cell(3, 2, "bf16", offload="optimizer_parameters"),
]  # fmt: skip
SAME += OFFLOADED
CROSS += [
    (Cell(1, 2, offload="optimizer"), Cell(3, 3)),
    (Cell(2, 2, offload="optimizer"), Cell(0, 1)),
    (Cell(3, 2, offload="optimizer_parameters"), Cell(1, 2, offload="optimizer")),
    (Cell(0, 1), Cell(3, 2, offload="optimizer_parameters")),
    (Cell(2, 3), Cell(2, 2, offload="optimizer")),
    (Cell(3, 2, "bf16", offload="optimizer_parameters"), Cell(2, 2, "bf16")),
]
HPZ, NO_HPZ = Cell(3, 4, hpz=2), Cell(3, 4)
SAME += [HPZ, NO_HPZ, HPZ._replace(precision="bf16", offload="parameters"), NO_HPZ._replace(precision="bf16")]
CROSS += [(HPZ, NO_HPZ), (NO_HPZ, HPZ)]

ONE, TWO = Cell(0, 1, model="llama"), Cell(1, 2, together=2, model="llama")
FOUR, UNTIED = TWO._replace(world=4), Cell(0, 1, model="llama-untied")
TWO_3, FOUR_3 = TWO._replace(zero_stage=3), FOUR._replace(zero_stage=3)
TENSOR = [
    TWO, TWO._replace(zero_stage=0), TWO._replace(zero_stage=2), FOUR, FOUR._replace(zero_stage=0), FOUR._replace(zero_stage=2),
    TWO._replace(model="llama-untied"), TWO._replace(precision="bf16"), TWO._replace(optimizer="sgd"), FOUR._replace(offload="optimizer"),
    TWO._replace(zero_stage=2, offload="optimizer"), TWO_3._replace(precision="bf16"), FOUR_3,
    FOUR_3._replace(model="llama-untied", offload="optimizer_parameters"),
]  # fmt: skip
NARROW_ONE = ONE._replace(zero_stage=1, precision="bf16")
WHOLE = [ONE, UNTIED, NARROW_ONE, ONE._replace(optimizer="sgd"), Cell(3, 2, model="llama")]
TENSOR_CROSS = [
    (TWO, ONE), (ONE, TWO), (FOUR, Cell(3, 2, model="llama")), (Cell(3, 2, model="llama"), FOUR), (TWO._replace(zero_stage=2), FOUR),
    (FOUR._replace(zero_stage=0), TWO._replace(zero_stage=2)), (FOUR._replace(offload="optimizer"), TWO._replace(zero_stage=0)),
    (FOUR_3, ONE), (ONE, TWO_3), (TWO_3._replace(precision="bf16"), TWO._replace(precision="bf16")),
    (TWO._replace(model="llama-untied"), FOUR_3._replace(model="llama-untied", offload="optimizer_parameters")),
    (TWO._replace(model="llama-untied"), UNTIED), (UNTIED, TWO._replace(model="llama-untied")),
    (TWO._replace(precision="bf16"), ONE._replace(zero_stage=1, precision="bf16")),
    (TWO._replace(optimizer="sgd"), ONE._replace(optimizer="sgd")),
]  # fmt: skip
ADAPTED = [Cell(2, 2, model="adapted"), Cell(3, 2, model="adapted")]
ADAPTED_PAIRS = [(layout, layout) for layout in ADAPTED] + [(ADAPTED[1], ADAPTED[0]), (ADAPTED[0], Cell(0, 1, model="adapted"))]
PAIRS = [(layout, layout) for layout in SAME] + [pair for pair in CROSS if pair[0] != pair[1]]

PIPE, ONE_NET = Cell(1, 2, model="llama", stages=2), Cell(0, 1)
PIPES, THREE, NET = PIPE._replace(world=4), PIPE._replace(world=3, stages=3), Cell(1, 2, stages=2)
NARROW_PIPE, NARROW_PIPES = PIPE._replace(precision="bf16"), PIPES._replace(zero_stage=0, precision="bf16")
UNTIED_PIPE, NETS, SHARDED = PIPE._replace(model="llama-untied"), NET._replace(world=4, zero_stage=0), Cell(3, 2, model="llama")
PIPELINES = [
    PIPE, PIPE._replace(zero_stage=0), PIPES, THREE, UNTIED_PIPE, NARROW_PIPE, NARROW_PIPES, PIPE._replace(offload="optimizer"), NET, NETS,
    PIPE._replace(world=6), PIPE._replace(recompute="full"),
]  # fmt: skip
PIPELINES_CROSS = [
    (PIPE, ONE), (ONE, PIPE), (PIPE, SHARDED), (SHARDED, PIPES), (PIPES, THREE), (THREE, PIPE._replace(zero_stage=0)),
    (UNTIED_PIPE, UNTIED), (TWO, PIPE), (NARROW_PIPE, NARROW_PIPES), (NARROW_PIPES, NARROW_PIPE), (NETS, ONE_NET), (ONE_NET, NET),
]  # fmt: skip
RUNS = {"net": (SAME, PAIRS)}
RUNS["llama"] = (WHOLE + TENSOR + ADAPTED, [(layout, layout) for layout in TENSOR] + TENSOR_CROSS + ADAPTED_PAIRS)
RUNS["pipeline"] = (
    [ONE, UNTIED, NARROW_ONE, SHARDED, TWO, ONE_NET, *PIPELINES],
    [(layout, layout) for layout in PIPELINES] + PIPELINES_CROSS,
)
"""What trains calmly, and (source, target) of what is resumed."""


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

    def layers(self):
        return [
            nn.Sequential(Field("tokens"), self.embedding, self.frozen, nn.Tanh()), self.hidden, nn.Sequential(self.norm, nn.ReLU()),
            self.back, self.head,
        ]  # fmt: skip


class Field(nn.Module):
    def __init__(self, name):
        super().__init__()
        self.name = name

    def forward(self, batch):
        return batch[self.name]


def llama(tied):
    """Sizes and a number of heads that two ranks cannot share evenly."""
    shape = {"hidden_size": 24, "intermediate_size": 37, "num_hidden_layers": 2, "num_attention_heads": 3, "max_position_embeddings": 8}
    return LlamaForCausalLM(LlamaConfig(vocab_size=13, tie_word_embeddings=tied, use_cache=False, **shape))


def adapted():
    """The untied one, frozen, with low-rank adapters that are trained."""
    return Adapters(lora_rank=2).adapt(llama(tied=False))


MODELS = {"net": Net, "llama": lambda: llama(tied=True), "llama-untied": lambda: llama(tied=False), "adapted": adapted}
DISK = None
"""Folder for state in files; None: where temporary files go."""
LENGTHS, LOSSES, SETTINGS = {}, {}, {}
"""Positions of a sequence where they are not 6; what is trained where it is not `loss`; more of `training`; by model."""
INITIALISE = dict.fromkeys(("llama", "llama-untied"), lambda model, name, module: model._init_weights(module))
"""What is built on the meta device and gets its values module by module."""


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
    for cell in cells:
        try:
            found = calm(folder, cell, rank) if phase == "calm" else resumed(folder, *cell, rank)
        except BaseException:
            traceback.print_exc()
            raise
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
    restore(DirectoryStore(folder / "store"), manifest, engine.state.wanted_pieces())
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
    layers = Net.layers if cell.model == "net" else lambda model: decoder_layers(model, lambda batch: batch["input_ids"])
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
    write_checkpoint(store, keys.checkpoint(at, 1, "u"), rank, engine.state.owned_pieces(), {})
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


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
