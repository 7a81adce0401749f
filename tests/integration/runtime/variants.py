"""Ways to compute the same training: `python variants.py FOLDER` forks the ranks of each world from one process that has imported all.

Each variant trains a small Llama for `STEPS` steps; its losses, gradient norms and parameter names go to `FOLDER/result.json`.
"""

from __future__ import annotations

import json
import os
import sys
from functools import partial
from pathlib import Path
from typing import NamedTuple

TESTS = Path(__file__).parents[2]
sys.path[:0] = [str(TESTS.parent), str(Path(__file__).parent)]
os.environ.update(OMP_NUM_THREADS="1", DS_ACCELERATOR="cpu", GLOO_SOCKET_IFNAME="lo")

import torch  # noqa: E402
import torch.distributed as dist  # noqa: E402
from forked import run_ranks  # noqa: E402
from torch import nn  # noqa: E402
from transformers import LlamaConfig, LlamaForCausalLM  # noqa: E402

from orchestrator.layout import layout_for  # noqa: E402
from orchestrator.runtime.engine import Engine, disable_shared_memory_op  # noqa: E402
from orchestrator.spec import JobSpec, from_dict  # noqa: E402
from workloads.chunked_loss import ChunkedHead, allow_chunks, cross_entropy  # noqa: E402

STEPS, BATCH = 3, 8


class Variant(NamedTuple):
    zero_stage: int
    world: int = 2
    together: int = 1
    """Tensor-parallel size."""
    tied: bool = True
    chunk: int = 0
    precision: str = "fp32"
    recompute: str = "none"
    compile: bool = False
    images: str = ""
    """`plain` or `channels_last`: a convolutional network in place of the Llama."""


PLAIN = [Variant(stage) for stage in range(4)] + [Variant(3, tied=False), Variant(2, precision="bf16")]
PLAIN += [Variant(1, together=2), Variant(1, together=2, tied=False)]
CHUNKED = [plain._replace(chunk=5) for plain in PLAIN]
RECOMPUTED = [Variant(stage, recompute=how) for stage in range(4) for how in ("full", "selective")]
RECOMPUTED += [Variant(1, together=2, recompute="full"), Variant(2, precision="bf16", recompute="selective")]
COMPILED = [Variant(stage, chunk=5, compile=True) for stage in range(3)] + [Variant(3, recompute="full", compile=True)]
IMAGES = [Variant(stage, images=how) for stage in range(4) for how in ("plain", "channels_last")]
VARIANTS = [*PLAIN, *CHUNKED, *RECOMPUTED, *COMPILED, *IMAGES]


def main(folder):
    disable_shared_memory_op()
    for together in (1, 2):  # a process makes DeepSpeed's groups once
        variants = [variant for variant in VARIANTS if variant.together == together]
        run_ranks(2, partial(as_rank, folder=folder, variants=variants))
    found = [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]
    (folder / "result.json").write_text(json.dumps(found))


def as_rank(rank, folder, variants):
    for number, variant in enumerate(variants):
        found = trained(variant, rank)
        if rank == 0:
            (folder / f"{variant.together}-{number}.json").write_text(json.dumps({"variant": variant, **found}))


def trained(variant, rank):
    engine, layout = build(variant)
    norms = [] if variant.compile or variant.images else count_norms(engine.module)
    torch._dynamo.reset()
    counters = torch._dynamo.utils.counters
    counters.clear()
    losses = []
    for number in range(1, STEPS + 1):
        batches = micro_batches(layout, number, rank)
        report = engine.step(map(as_images, batches) if variant.images else batches, 0.01)
        total = report.loss.clone()
        dist.all_reduce(total)
        losses.append([float(total) / layout.world_size, float(report.grad_norm)])
    heads = [type(module) for module in engine.module.modules() if isinstance(module, ChunkedHead)]
    names = sorted({piece.name for piece in engine.state.wanted_pieces()})
    found = {"losses": losses, "names": names, "chunked": bool(heads), "norms": len(norms)}
    found |= {"graphs": counters["stats"]["unique_graphs"], "breaks": list(counters["graph_break"])}
    return found | {"channels_last": getattr(engine.module, "channels_last", False)}


def count_norms(model):
    """Grows by one whenever the first block's norm computes, also where it computes again. (A compiled block would look at the list.)"""
    calls = []
    model.model.layers[0].input_layernorm.register_forward_hook(lambda *_: calls.append(1))
    return calls


def build(variant):
    values = {
        "workload": {"name": "llama", "entrypoint": "llama:Llama"}, "model": {"name": "llama"}, "data": {"name": "none"},
        "training": {"max_steps": STEPS, "global_batch_size": BATCH, "micro_batch_size": 2, "precision": variant.precision,
                     "activation_checkpointing": variant.recompute, "compile": variant.compile, "compile_backend": "aot_eager",
                     "channels_last": variant.images == "channels_last"},
        "resources": {"num_workers": variant.world}, "optimizer": {"lr": 0.01},
        "parallelism": {"zero_stage": variant.zero_stage, "tensor_parallel_size": variant.together},
    }  # fmt: skip
    spec = from_dict(JobSpec, values)
    torch.manual_seed(1)
    model = Images() if variant.images else llama(variant.tied)
    if variant.chunk:
        allow_chunks(model)
    layout = layout_for(spec)
    compute = image_loss if variant.images else partial(loss, chunk=variant.chunk)
    return Engine(model, compute, spec, layout, torch.device("cpu")), layout


class Images(nn.Module):
    """Notes whether its last convolution's input has its channels innermost."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.head = nn.Conv2d(2, 4, 3), nn.Conv2d(4, 8, 2, stride=2), nn.Linear(8, 3)
        self.channels_last = False

    def forward(self, image):
        x = torch.relu(self.first(image))
        self.channels_last = x.is_contiguous(memory_format=torch.channels_last)
        return self.head(self.second(x).mean((2, 3)))


def as_images(batch):
    tokens = batch["tokens"].float()
    return {"image": torch.sin(tokens[:, :2, None, None] * torch.arange(1, 37).view(6, 6)), "label": batch["tokens"][:, 0] % 3}


def image_loss(model, batch):
    return nn.functional.cross_entropy(model(batch["image"]), batch["label"])


def llama(tied):
    shape = {"hidden_size": 24, "intermediate_size": 37, "num_hidden_layers": 2, "num_attention_heads": 2, "max_position_embeddings": 8}
    return LlamaForCausalLM(LlamaConfig(vocab_size=13, tie_word_embeddings=tied, use_cache=False, **shape))


def loss(model, batch, chunk):
    return cross_entropy(model, {"input_ids": batch["tokens"][:, :-1]}, batch["tokens"][:, 1:], chunk=chunk)


def micro_batches(layout, number, rank):
    """Sequences that go on by threes from a first token."""
    generator = torch.Generator().manual_seed(number)
    first = torch.randint(0, 13, (BATCH // 2, 2), generator=generator)
    for index in range(layout.data_parallel_rank(rank), BATCH // 2, layout.data_parallel_size):
        yield {"tokens": (first[index][:, None] + 3 * torch.arange(7)) % 13}


if __name__ == "__main__":
    main(Path(sys.argv[1]))
