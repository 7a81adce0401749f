"""`matrix.py` for expert parallelism: `python mixtures.py FOLDER mixture`. Decoders with four experts in each layer."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

sys.path.append(str(Path(__file__).parent))

import matrix
from matrix import Cell
from torch.nn import functional

from workloads.decoder import Mixture
from workloads.mixture import balance_loss

ONE, DEALT = Cell(0, 1, model="mixture"), Cell(1, 2, model="mixture", experts=2)
TWICE, FOURFOLD, SHARDED = DEALT._replace(world=4), Cell(1, 4, model="mixture", experts=4), Cell(3, 2, model="mixture")
NARROW, NARROW_TWO = DEALT._replace(precision="bf16"), Cell(1, 2, "bf16", model="mixture")
LION, LION_ONE = DEALT._replace(zero_stage=2, optimizer="lion"), ONE._replace(optimizer="lion")
SHARED, SHARED_ONE = DEALT._replace(zero_stage=2, model="mixture-shared"), ONE._replace(model="mixture-shared")
DENSE, DENSE_ONE = (cell._replace(model="mixture-dense") for cell in (SHARED, SHARED_ONE))
UNDEALT = [ONE, SHARED_ONE, DENSE_ONE, LION_ONE, NARROW_TWO, *(Cell(stage, 2, model="mixture") for stage in range(4))]
DEALT_OUT = [DEALT._replace(zero_stage=stage) for stage in range(4)] + [TWICE._replace(zero_stage=2), FOURFOLD, NARROW]
DEALT_OUT += [DEALT._replace(zero_stage=stage, offload="optimizer") for stage in (1, 2)]
DEALT_OUT += [DEALT._replace(zero_stage=3, offload="optimizer_parameters")]
AGAIN = [DEALT._replace(zero_stage=stage, recompute="full") for stage in (1, 3)]
ELSEWHERE = [TWICE._replace(zero_stage=stage) for stage in (0, 1, 3)]  # not resumed in their own layout, to save time
ELSEWHERE += [LION, SHARED, DENSE]
CROSS = [
    (DEALT, ONE), (ONE, TWICE._replace(zero_stage=2)), (DEALT._replace(zero_stage=0), SHARDED), (SHARDED, TWICE),
    (TWICE._replace(zero_stage=3), FOURFOLD), (FOURFOLD, DEALT._replace(zero_stage=3)),
    (TWICE._replace(zero_stage=0), DEALT._replace(zero_stage=2)), (SHARED, SHARED_ONE), (NARROW, NARROW_TWO), (LION, LION_ONE),
    (DENSE_ONE, DENSE),
]  # fmt: skip


def mixture(shared_width, dense_layers=0):
    shape = {"hidden_size": 24, "intermediate_size": 16, "num_layers": 2, "num_heads": 3, "num_experts": 4}
    return Mixture(**shape, shared_intermediate_size=shared_width, dense_layers=dense_layers)


def balanced_loss(model, batch):
    output = model(input_ids=batch["input_ids"], output_router_logits=True)
    cross_entropy = functional.cross_entropy(output.logits.flatten(0, 1).float(), batch["target"].flatten())
    return cross_entropy + 0.1 * balance_loss(output.router_logits, 2)


if __name__ == "__main__":
    decoders = {"mixture": mixture(0), "mixture-shared": mixture(40), "mixture-dense": mixture(40, 1)}
    matrix.MODELS.update({name: partial(decoder.build, vocab_size=13, block_size=8) for name, decoder in decoders.items()})
    matrix.INITIALISE.update({name: decoder.initialise for name, decoder in decoders.items()})
    matrix.LOSSES.update(dict.fromkeys(decoders, balanced_loss))
    matrix.BATCH = 8
    matrix.RUNS["mixture"] = (UNDEALT + DEALT_OUT + ELSEWHERE + AGAIN, [(layout, layout) for layout in DEALT_OUT] + CROSS)
    matrix.main(Path(sys.argv[1]), "mixture")
