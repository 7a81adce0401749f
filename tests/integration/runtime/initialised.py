"""`python initialised.py FOLDER`: what a model's weights are, and how many of them a rank ever holds, in layouts that fill it differently.

Forks the ranks of each world from one process, as `matrix.py` does; `FOLDER/result.json` has a row for each cell.
"""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parent))

import matrix
import torch
import torch.distributed as dist
from matrix import Cell
from transformers import LlamaConfig, LlamaForCausalLM

ONE = Cell(0, 1, model="tied")
THIRD = ONE._replace(zero_stage=3, world=2)
CELLS = [
    ONE, ONE._replace(zero_stage=0, world=2), ONE._replace(zero_stage=2, world=2), THIRD, THIRD._replace(world=4),
    THIRD._replace(world=4, hpz=2), THIRD._replace(offload="optimizer_parameters"), THIRD._replace(precision="bf16"),
    ONE._replace(zero_stage=1, world=2, precision="bf16"), ONE._replace(world=2, stages=2),
    ONE._replace(world=2, stages=2, precision="bf16"),
    ONE._replace(model="untied"), THIRD._replace(model="untied"), ONE._replace(model="untied", world=2, stages=2),
]  # fmt: skip


def llama(tied):
    shape = {"hidden_size": 24, "intermediate_size": 37, "num_hidden_layers": 8, "num_attention_heads": 3, "max_position_embeddings": 8}
    return LlamaForCausalLM(LlamaConfig(vocab_size=13, tie_word_embeddings=tied, use_cache=False, **shape))


def initialise(model, name, module):
    """As the workloads do; notes how much the rank holds at that moment."""
    model._init_weights(module)
    held.append(sum(map(elements, {id(weight): weight for weight in model.parameters()}.values())))


def elements(weight):
    part = getattr(weight, "ds_tensor", None)
    return (0 if weight.is_meta else weight.numel()) + (0 if part is None else part.numel())


def look(folder, cell, rank):
    """Digests of all weights, put together from the ranks' masters, as they are and rounded to bf16; the most that a rank held."""
    held.clear()
    engine, _ = matrix.build(cell)
    everywhere = [None] * cell.world
    pieces = [(p.name, p.start, p.data.clone(), p.global_shape) for p in engine.state.wanted_pieces() if p.role == "param"]
    dist.all_gather_object(everywhere, (pieces, max(held)))
    whole = {}
    for name, start, data, shape in (piece for pieces, _ in everywhere for piece in pieces):
        tensor = whole.setdefault(name, torch.full(shape, torch.nan)).view(-1)
        assert torch.equal(tensor[start : start + len(data)].nan_to_num(), data) or tensor[start : start + len(data)].isnan().all()
        tensor[start : start + len(data)] = data
    assert not any(tensor.isnan().any() for tensor in whole.values())
    digests = {name: [digest(tensor), digest(tensor.bfloat16().float())] for name, tensor in sorted(whole.items())}
    return {"digests": digests, "held": [most for _, most in everywhere], "elements": sum(tensor.numel() for tensor in whole.values())}


def digest(tensor):
    return hashlib.sha256(tensor.numpy().tobytes()).hexdigest()


held = []

if __name__ == "__main__":
    for name, tied in (("tied", True), ("untied", False)):
        matrix.MODELS[name], matrix.INITIALISE[name] = (lambda tied=tied: llama(tied)), initialise
    matrix.calm, matrix.BATCH = look, 8
    matrix.RUNS["initialised"] = (CELLS, [])
    matrix.main(Path(sys.argv[1]), "initialised")
