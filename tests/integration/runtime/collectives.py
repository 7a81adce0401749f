"""What ranks send in a step: `python collectives.py FOLDER` counts the collectives of layouts.py's cells, and what the formula says."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import layouts
import matrix
import torch
import torch.distributed as dist

CELLS = [matrix.Cell(stage, 2, precision) for stage in range(4) for precision in ("fp32", "bf16")] + [layouts.TWO._replace(zero_stage=0)]
RING = {"all_reduce": 2, "reduce": 1, "all_gather_into_tensor": 1, "reduce_scatter_tensor": 1}
"""Sent bytes in units of (n - 1) / n of the largest tensor."""


class Counted:
    """Calls of torch.distributed between two ranks, told apart by the micro batch whose backward pass they belong to."""

    def __init__(self):
        self.phase, self.sent, self.calls = "", Counter(), Counter()
        for name in RING:
            setattr(dist, name, self._counting(name, getattr(dist, name)))

    def _counting(self, name, real):
        def call(*args, **kwargs):
            largest = max((x for x in [*args, *kwargs.values()] if torch.is_tensor(x)), key=torch.Tensor.numel)
            if largest.numel() > 1 and dist.get_world_size(kwargs.get("group")) == 2:  # scalars are norms and losses
                self.calls[f"{self.phase} {name}"] += 1
                self.sent[name.removesuffix("_into_tensor").removesuffix("_tensor")] += RING[name] * largest.nbytes // 2
            return real(*args, **kwargs)

        return call


def count(counted, cell, rank):
    engine, layout = matrix.build(cell)
    matrix.step(engine, layout, 1, rank, cell)
    counted.sent.clear(), counted.calls.clear()
    inner, backward, losses = engine._engine, engine._engine.backward, []

    def marked(loss):
        losses.append(loss)
        counted.phase = f"backward {len(losses)}"
        backward(loss)
        counted.phase = ""

    inner.backward = marked
    matrix.step(engine, layout, 2, rank, cell)
    tokens = 6 if cell.model == "llama" else 0
    formula = engine.sent_bytes(matrix.spec_of(cell), tokens)
    return {"sent": counted.sent, "calls": counted.calls, "formula": formula, "micro_batches": len(losses)}


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    holder = []

    def counting(folder, cell, rank):
        holder[:] = holder or [Counted()]
        return count(holder[0], cell, rank)

    layouts.set_up()
    matrix.calm = counting
    matrix.RUNS["collectives"] = (CELLS, [])
    matrix.main(folder, "collectives")
