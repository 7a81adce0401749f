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
NARROW, LION = DEALT._replace(precision="bf16"), DEALT._replace(zero_stage=2, optimizer="lion")
SHARED, LEFT = DEALT._replace(zero_stage=2, model="mixture-shared"), TWICE._replace(offload="optimizer")
NARROW_ONE, LION_ONE = ONE._replace(zero_stage=1, precision="bf16"), ONE._replace(optimizer="lion")
SHARED_ONE = ONE._replace(model="mixture-shared")
UNDEALT = [ONE, SHARED_ONE, LION_ONE, NARROW_ONE, *(Cell(stage, 2, model="mixture") for stage in range(4))]
DEALT_OUT = [layout._replace(zero_stage=stage) for layout in (DEALT, TWICE) for stage in range(4)]
DEALT_OUT += [FOURFOLD, NARROW, LION, SHARED, LEFT, DEALT._replace(zero_stage=3, offload="optimizer_parameters")]
HALF = [TWICE, TWICE._replace(zero_stage=0), TWICE._replace(zero_stage=3)]  # go on elsewhere only, to save time
CROSS = [
    (DEALT, ONE), (ONE, TWICE._replace(zero_stage=2)), (DEALT._replace(zero_stage=0), SHARDED), (SHARDED, TWICE),
    (TWICE._replace(zero_stage=3), FOURFOLD), (FOURFOLD, DEALT._replace(zero_stage=3)),
    (TWICE._replace(zero_stage=0), DEALT._replace(zero_stage=2)), (LEFT, ONE), (SHARED, SHARED_ONE), (NARROW, NARROW_ONE), (LION, LION_ONE),
]  # fmt: skip


def mixture(shared_width):
    shape = {"hidden_size": 24, "intermediate_size": 16, "num_layers": 2, "num_heads": 3, "num_experts": 4}
    return Mixture(**shape, shared_intermediate_size=shared_width).build(vocab_size=13, block_size=8)


def balanced_loss(model, batch):
    output = model(input_ids=batch["input_ids"], output_router_logits=True)
    cross_entropy = functional.cross_entropy(output.logits.flatten(0, 1).float(), batch["target"].flatten())
    return cross_entropy + 0.1 * balance_loss(output.router_logits, 2)


if __name__ == "__main__":
    matrix.MODELS.update({"mixture": partial(mixture, 0), "mixture-shared": partial(mixture, 40)})
    matrix.LOSSES.update(dict.fromkeys(("mixture", "mixture-shared"), balanced_loss))
    matrix.BATCH = 16
    matrix.RUNS["mixture"] = (UNDEALT + DEALT_OUT, [(layout, layout) for layout in DEALT_OUT if layout not in HALF] + CROSS)
    matrix.main(Path(sys.argv[1]), "mixture")
