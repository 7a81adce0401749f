"""Claim: at equal tokens a GPT of 5 million parameters reaches the validation loss of a nanoGPT-style reference loop, or a lower one.

    python benchmarks/reference_learning.py [--steps 600]

Ours is `orchestrator train workload=gpt model=gpt-5m`, whole. Two references, each a plain PyTorch loop in a process of its own, train on
the same training tokens as often, draw blocks at random offsets as nanoGPT does, and are judged on the same validation blocks:
`nanogpt` has nanoGPT's model (GPT-2: learned positions, LayerNorm, GELU) and the settings of its small configurations (AdamW 1e-3, betas
0.9 and 0.99, decay 0.1, clipping 1, cosine to a tenth, 100 steps of warm-up), `same model` has our model and optimizer settings.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from record import ROOT, publish, table

from harness import Sandbox  # isort: skip  - `record` puts it on the path

sys.path.insert(0, str(ROOT))
from orchestrator.config import load_job_spec
from orchestrator.paths import JobKeys

BATCH, VALIDATION, BAR = 24, 512, 1.01
REFERENCES = ("nanogpt", "same model")


def overrides(steps: int) -> list[str]:
    return [
        "workload=gpt", "model=gpt-5m", f"training.max_steps={steps}", f"training.global_batch_size={BATCH}", "training.micro_batch_size=4",
        f"training.eval_samples={VALIDATION}", "training.eval_interval_steps=0", "checkpoint.interval_steps=1000",
        "optimizer.warmup_steps=50", "resources.num_workers=1",
    ]  # fmt: skip


def train_ours(steps: int) -> dict[str, Any]:
    box = Sandbox()
    try:
        code, output = box.run("train", *overrides(steps), timeout_s=6 * 3600)
        assert code == 0, output
        job_id = box.jobs()[-1].id
        figures: dict[str, Any] = json.loads(box.store(job_id).get(JobKeys(job_id).artifact("evaluation.json")))
        return figures["after"]
    finally:
        box.close()


def train_reference(name: str, steps: int, folder: Path) -> dict[str, Any]:
    """In a process of its own: `--reference`."""
    import numpy as np
    import torch

    from orchestrator.data.loader import eval_batches, open_dataset
    from orchestrator.data.prepare import ensure_dataset
    from orchestrator.runtime.entrypoint import load_workload
    from orchestrator.storage import DirectoryStore

    torch.set_num_threads(1)
    spec = load_job_spec(overrides(steps))
    workload, store = load_workload(spec), DirectoryStore(folder / "store")
    dataset = open_dataset(store, spec.data.name, ensure_dataset(store, workload, spec, lambda text: None), folder / "cache")
    torch.manual_seed(0)
    model = workload.build_model(dataset)
    if name == "nanogpt":
        model = nanogpt(workload.tokens_per_sample, model.config.vocab_size)
    asked = spec.optimizer
    settings = (asked.lr, asked.betas, asked.warmup_steps) if name == "same model" else (1e-3, (0.9, 0.99), 100)
    records = dataset.gather("train", np.arange(dataset.num_samples("train")))["tokens"]
    train(model, workload.loss, records.astype(np.int64).reshape(-1), records.shape[1] - 1, steps, *settings)
    model.eval()
    sums: dict[str, Any] = {}
    with torch.no_grad():
        for batch in eval_batches(dataset, "validation", 0, 1, 8, VALIDATION):
            for key, value in workload.evaluate(model, batch).items():
                sums[key] = sums.get(key, 0) + value
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        **workload.metrics({key: value.numpy() for key, value in sums.items()}),
    }


def train(
    model: Any, loss_of: Callable[..., Any], stream: Any, block: int, steps: int, lr: float, betas: tuple[float, float], warmup: int
) -> None:  # fmt: skip
    """As nanoGPT's train.py: blocks at random offsets, decay for matrices only, clipping, warm-up, cosine to a tenth."""
    import numpy as np
    import torch

    matrices, vectors = [p for p in model.parameters() if p.dim() > 1], [p for p in model.parameters() if p.dim() <= 1]
    optimizer = torch.optim.AdamW([{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}], lr=lr, betas=betas)
    rng = np.random.default_rng(0)
    for step in range(1, steps + 1):
        share = (step - warmup) / max(1, steps - warmup)
        now = lr * (step / warmup if step < warmup else 0.1 + 0.45 * (1 + math.cos(math.pi * share)))
        for group in optimizer.param_groups:
            group["lr"] = now
        for _ in range(BATCH // 4):
            starts = rng.integers(0, len(stream) - block - 1, 4)
            loss = loss_of(model, {"tokens": torch.from_numpy(np.stack([stream[s : s + block + 1] for s in starts]))})
            (loss / (BATCH // 4)).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if step % 50 == 0:
            print(f"step {step} of {steps}: loss {float(loss.detach()):.3f}", file=sys.stderr, flush=True)


def nanogpt(block: int, vocabulary: int) -> Any:
    """GPT-2 at 5 million parameters as nanoGPT makes it: no dropout (less than one epoch), tied head, scaled residual projections."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=vocabulary, n_positions=block, n_embd=256, n_layer=6, n_head=4, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
        use_cache=False, attn_implementation="sdpa",
    )  # fmt: skip
    model: torch.nn.Module = GPT2LMHeadModel(config)
    return model


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--reference", choices=REFERENCES)
    parser.add_argument("--folder", type=Path)
    asked = parser.parse_args()
    if asked.reference:
        print(json.dumps(train_reference(asked.reference, asked.steps, asked.folder)))
        return 0
    found: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as folder:
        threads = [threading.Thread(target=lambda: found.update(ours=train_ours(asked.steps)))]
        threads += [threading.Thread(target=run_reference, args=(name, asked.steps, Path(folder) / name, found)) for name in REFERENCES]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert set(found) == {"ours", *REFERENCES}, f"an arm failed; there are {sorted(found)}"
    losses = {name: found[name]["loss"] for name in ("ours", *REFERENCES)}
    ratios = {name: losses["ours"] / losses[name] for name in REFERENCES}
    rows = [(name, f"{losses[name]:.4f}", f"{losses['ours'] / losses[name]:.4f}", found[name].get("parameters", "")) for name in losses]
    tokens = asked.steps * BATCH * 128
    return publish(
        "reference_learning", "At equal tokens a GPT reaches the validation loss of a nanoGPT-style loop", bar=BAR,
        ours=round(max(ratios.values()), 4), peers={name: round(losses[name], 4) for name in REFERENCES}, loss=round(losses["ours"], 4),
        holds=max(ratios.values()) <= BAR, tokens=tokens, n=1,
        rows=[
            f"{tokens:,} training tokens each (less than one epoch), {VALIDATION} validation blocks of 128 tokens, seed 0.", "",
            *table(("loop", "validation loss", "ours / it", "parameters"), rows),
        ],
    )  # fmt: skip


def run_reference(name: str, steps: int, folder: Path, found: dict[str, dict[str, Any]]) -> None:
    folder.mkdir()
    command = [sys.executable, __file__, "--reference", name, "--steps", str(steps), "--folder", str(folder)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    found[name] = json.loads(done.stdout.splitlines()[-1])


if __name__ == "__main__":
    raise SystemExit(main())
