"""Claim: every layout of the tests' matrices of data, tensor, pipeline, sequence and expert parallelism trains to the losses of one rank.

    python benchmarks/layouts.py [--steps 50] [--only llama ...]

The cells are those of the tests (tests/integration/runtime/layouts.py), which train less long. Each is compared step by step with one rank
of the same model, precision, optimizer and batch; where the matrix has no such cell, with the plain data-parallel one of the fewest ranks.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from record import ROOT, publish, table

MATRICES = {"net": "layouts.py", "llama": "layouts.py", "pipeline": "layouts.py", "mixture": "mixtures.py", "sequence": "sequences.py"}
BARS = {"fp32": 1e-3, "bf16": 3e-2}
SIZES = ("tensor", "pipeline", "sequence", "expert")
PLAIN = {"offload": "", "hpz": 1, "recompute": "none", **dict.fromkeys(SIZES, 1)}
FIELDS = ("zero_stage", "world", "precision", "optimizer", "offload", "tensor", "model", "pipeline", "sequence", "expert", "hpz",
          "recompute")  # fmt: skip


Cell = tuple[Any, ...]
"""A layout as the matrices write it; its fields are `FIELDS`."""


def run(matrix: str, steps: int) -> dict[Cell, dict[str, Any]]:
    """Batch size and losses by cell."""
    with tempfile.TemporaryDirectory() as folder:
        script = ROOT / "tests" / "integration" / "runtime" / MATRICES[matrix]
        environment = {**os.environ, "MATRIX_STEPS": str(steps), "PYTHONWARNINGS": "ignore"}
        subprocess.run([sys.executable, str(script), folder, matrix], env=environment, check=True, stdout=subprocess.DEVNULL)
        rows = json.loads((Path(folder) / "result.json").read_text())
    return {tuple(row["cell"]): {"batch": row["batch"], "losses": [loss for loss, _ in row["losses"]]} for row in rows}


def fields(cell: Cell) -> dict[str, Any]:
    return dict(zip(FIELDS, cell, strict=True))


def reference(cell: Cell, found: dict[Cell, dict[str, Any]]) -> Cell | None:
    """The plain cell of the fewest ranks with the same model, numbers, optimizer and batch; None where `cell` is that itself."""
    own = fields(cell)
    wanted = {**PLAIN, **{name: own[name] for name in ("precision", "optimizer", "model")}}
    plain = [
        other for other in found
        if found[other]["batch"] == found[cell]["batch"] and wanted.items() <= fields(other).items()
    ]  # fmt: skip
    least = min(plain, key=lambda other: (fields(other)["world"], fields(other)["zero_stage"]), default=None)
    return None if least == cell else least


def kind(cell: Cell) -> str:
    """The row of the table: what is divided or lies elsewhere, and how numbers are kept."""
    named = fields(cell)
    sizes = [f"{name} parallel" for name in SIZES if named[name] > 1] or ["data parallel"]
    more = [f"{named['offload'].replace('_', ' and ')} on the CPU"] if named["offload"] else []
    more += ["ZeRO++ hpz"] if named["hpz"] > 1 else []
    more += ["activations computed again"] if named["recompute"] != "none" else []
    return ", ".join([*sizes, *more, named["optimizer"], named["precision"]])


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--only", nargs="*", choices=MATRICES, default=list(MATRICES))
    asked = parser.parse_args()
    worst: dict[str, tuple[float, int]] = {}
    references = 0
    for matrix in asked.only:
        found = run(matrix, asked.steps)
        print(f"{matrix}: {len(found)} layouts trained {asked.steps} steps", flush=True)
        for cell, row in found.items():
            other = reference(cell, found)
            if other is None:
                references += 1
                continue
            apart = max(abs(own - theirs) for own, theirs in zip(row["losses"], found[other]["losses"], strict=True))
            before = worst.get(kind(cell), (0.0, 0))
            worst[kind(cell)] = max(before[0], apart), before[1] + 1
    rows = [(name, count, f"{apart:.1e}", BARS[name.rsplit(", ", 1)[1]]) for name, (apart, count) in sorted(worst.items())]
    by_precision = {
        precision: max((apart for name, (apart, _) in worst.items() if name.endswith(precision)), default=0.0) for precision in BARS
    }
    return publish(
        "layouts", f"Every layout trains to the losses of one rank over {asked.steps} steps",
        ours={name: float(f"{value:.2g}") for name, value in by_precision.items()}, bar=BARS,
        n=sum(count for _, count in worst.values()), references=references,
        holds=all(by_precision[name] <= BARS[name] for name in BARS) and len(asked.only) == len(MATRICES),
        rows=table(("layouts", "compared", "largest difference of a loss", "bar"), rows),
    )  # fmt: skip


if __name__ == "__main__":
    raise SystemExit(main())
