"""Claim: each shipped optimizer configuration trains the GPT of `make train`, at equal steps, to at most 1.05 x the loss of AdamW's.

    python benchmarks/optimizers.py [--steps 300] [--seeds 1] [--set muon:optimizer.lr=0.01 ...]

Whole commands, `orchestrator train workload=gpt optimizer=...` on one worker; `gpt` is AdamW as shipped for this model, the others are as
`conf/optimizer` has them but for `--set`. What is compared is the validation loss at the end, on the blocks that every run holds out.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from typing import Any

from record import ROOT, publish, table

from harness import Sandbox  # isort: skip  - `record` puts it on the path

sys.path.insert(0, str(ROOT))
from orchestrator.paths import JobKeys

BASE, BAR = "gpt", 1.05
OTHERS = {"muon": 1, "lion": 1, "adafactor": 0}
"""And the ZeRO stage that they need."""


def loss_of(box: Sandbox, optimizer: str, zero_stage: int, steps: int, seed: int, more: list[str]) -> float:
    code, output = box.run(
        "train", "workload=gpt", f"optimizer={optimizer}", f"parallelism.zero_stage={zero_stage}", "resources.num_workers=1",
        f"training.max_steps={steps}", f"training.seed={seed}", "training.eval_interval_steps=0", "training.eval_samples=256",
        "checkpoint.interval_steps=100000", *more, timeout_s=3600,
    )  # fmt: skip
    assert code == 0, output
    job_id = box.jobs()[-1].id
    figures: dict[str, Any] = json.loads(box.store(job_id).get(JobKeys(job_id).artifact("evaluation.json")))
    return float(figures["after"]["loss"])


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--only", nargs="*", choices=OTHERS, default=list(OTHERS))
    parser.add_argument("--set", nargs="*", default=[], metavar="OPTIMIZER:OVERRIDE", help="for trying; such a page is no proof")
    asked = parser.parse_args()
    box, losses = Sandbox(), dict[str, list[float]]()
    try:
        for seed in range(asked.seeds):
            for name in (BASE, *asked.only):
                more = [pair.split(":", 1)[1] for pair in asked.set if pair.startswith(f"{name}:")]
                losses.setdefault(name, []).append(loss_of(box, name, OTHERS.get(name, 1), asked.steps, seed, more))
                print(f"seed {seed}, {name} {' '.join(more)}: {losses[name][-1]:.4f}", flush=True)
    finally:
        box.close()
    means = {name: statistics.mean(found) for name, found in losses.items()}
    ratios = {name: round(mean / means[BASE], 4) for name, mean in means.items() if name != BASE}
    rows = [(name, f"{mean:.4f}", f"{mean / means[BASE]:.4f}", BAR) for name, mean in means.items()]
    return publish(
        "optimizers", f"Each shipped optimizer configuration trains the GPT of `make train` in {asked.steps} steps as far as AdamW's",
        ours=ratios, bar=BAR, holds=max(ratios.values()) <= BAR, peers={"AdamW": round(means[BASE], 4)}, n=asked.seeds,
        rows=table(("configuration", "validation loss", "of AdamW's", "bar"), rows),
    )  # fmt: skip


if __name__ == "__main__":
    raise SystemExit(main())
