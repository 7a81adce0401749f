"""`matrix.py` for data, tensor and pipeline parallelism: `python layouts.py FOLDER net|llama|pipeline`."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parent))

import matrix
import torch
from matrix import Cell
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from workloads.adapters import Adapters

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


def set_up():
    matrix.MODELS.update({"net": Net, "llama": lambda: llama(tied=True), "llama-untied": lambda: llama(tied=False), "adapted": adapted})
    matrix.INITIALISE.update(dict.fromkeys(("llama", "llama-untied"), lambda model, name, module: model._init_weights(module)))
    matrix.RUNS["net"] = SAME, PAIRS
    matrix.RUNS["llama"] = (WHOLE + TENSOR + ADAPTED, [(layout, layout) for layout in TENSOR] + TENSOR_CROSS + ADAPTED_PAIRS)
    staged = [(layout, layout) for layout in PIPELINES] + PIPELINES_CROSS
    matrix.RUNS["pipeline"] = [ONE, UNTIED, NARROW_ONE, SHARDED, TWO, ONE_NET, *PIPELINES], staged


if __name__ == "__main__":
    set_up()
    matrix.main(Path(sys.argv[1]), sys.argv[2])
