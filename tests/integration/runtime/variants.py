"""Ways to compute the same training: `python variants.py FOLDER` forks the ranks of each world from one process that has imported all.

Each variant trains a small Llama for `STEPS` steps; its losses, gradient norms and parameter names go to `FOLDER/result.json`.
"""

from __future__ import annotations

import datetime
import json
import os
import socket
import sys
import traceback
from functools import partial
from pathlib import Path
from typing import NamedTuple

TESTS = Path(__file__).parents[2]
sys.path[:0] = [str(TESTS.parent)]
os.environ.update(OMP_NUM_THREADS="1", DS_ACCELERATOR="cpu", GLOO_SOCKET_IFNAME="lo")

import torch  # noqa: E402
import torch.distributed as dist  # noqa: E402
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


PLAIN = [Variant(stage) for stage in (0, 2, 3)] + [Variant(3, tied=False), Variant(2, precision="bf16")]
PLAIN += [Variant(1, together=2), Variant(1, together=2, tied=False)]
CHUNKED = [plain._replace(chunk=5) for plain in PLAIN]
RECOMPUTED = [Variant(stage, recompute=how) for stage in (0, 2, 3) for how in ("full", "selective")]
RECOMPUTED += [Variant(1, together=2, recompute="full"), Variant(2, precision="bf16", recompute="selective")]
VARIANTS = [*PLAIN, *CHUNKED, *RECOMPUTED]


def main(folder):
    disable_shared_memory_op()
    for together in (1, 2):  # a process makes DeepSpeed's groups once
        in_world(2, folder, [variant for variant in VARIANTS if variant.together == together])
    found = [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]
    (folder / "result.json").write_text(json.dumps(found))


def in_world(world, folder, variants):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    children = []
    for rank in range(world):
        child = os.fork()
        if child == 0:
            code = 1
            try:
                as_rank(rank, world, port, folder, variants)
                code = 0
            except BaseException:
                traceback.print_exc()
                raise
            finally:
                sys.stderr.flush()
                os._exit(code)
        children.append(child)
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    if any(codes):
        raise SystemExit(f"ranks ended with {codes}")


def as_rank(rank, world, port, folder, variants):
    os.environ.update(
        RANK=str(rank), WORLD_SIZE=str(world), LOCAL_RANK=str(rank), LOCAL_SIZE=str(world), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port)
    )
    torch.set_num_threads(1)
    dist.init_process_group("gloo", timeout=datetime.timedelta(seconds=120))
    for number, variant in enumerate(variants):
        found = trained(variant, rank)
        if rank == 0:
            (folder / f"{variant.together}-{number}.json").write_text(json.dumps({"variant": variant, **found}))


def trained(variant, rank):
    engine, layout = build(variant)
    losses, norms = [], count_norms(engine.module)
    for number in range(1, STEPS + 1):
        report = engine.step(micro_batches(layout, number, rank), 0.01)
        total = report.loss.clone()
        dist.all_reduce(total)
        losses.append([float(total) / layout.world_size, float(report.grad_norm)])
    heads = [type(module) for module in engine.module.modules() if isinstance(module, ChunkedHead)]
    names = sorted({piece.name for piece in engine.state.wanted_pieces()})
    return {"losses": losses, "names": names, "chunked": bool(heads), "norms": len(norms)}


def count_norms(model):
    """Grows by one whenever the first block's norm computes, also where it computes again."""
    calls = []
    model.model.layers[0].input_layernorm.register_forward_hook(lambda *_: calls.append(1))
    return calls


def build(variant):
    values = {
        "workload": {"name": "llama", "entrypoint": "llama:Llama"}, "model": {"name": "llama"}, "data": {"name": "none"},
        "training": {"max_steps": STEPS, "global_batch_size": BATCH, "micro_batch_size": 2, "precision": variant.precision,
                     "activation_checkpointing": variant.recompute},
        "resources": {"num_workers": variant.world}, "optimizer": {"lr": 0.01},
        "parallelism": {"zero_stage": variant.zero_stage, "tensor_parallel_size": variant.together},
    }  # fmt: skip
    spec = from_dict(JobSpec, values)
    torch.manual_seed(1)
    model = llama(variant.tied)
    if variant.chunk:
        allow_chunks(model)
    layout = layout_for(spec)
    return Engine(model, partial(loss, chunk=variant.chunk), spec, layout, torch.device("cpu")), layout


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
