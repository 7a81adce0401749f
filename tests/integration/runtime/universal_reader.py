"""`python universal_reader.py FOLDER EXPECTED.npz`: a plain DeepSpeed engine of one rank opens a universal checkpoint at ZeRO 1, 2 and 3.

Knows nothing of the orchestrator's engine. Compares weights and optimizer state with EXPECTED (`role:name`), then takes a step and
compares that with plain AdamW from the same state.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import deepspeed
import numpy as np
import torch
from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state
from torch import nn

sys.path[:0] = [str(Path(__file__).parents[3])]

from orchestrator.ports import free_port  # noqa: E402
from orchestrator.runtime.engine import disable_shared_memory_op  # noqa: E402

ADAM = {"lr": 0.01, "betas": (0.8, 0.9), "eps": 1e-6, "weight_decay": 0.1}


def build():
    torch.manual_seed(99)
    return nn.Sequential(nn.Linear(16, 32), nn.LayerNorm(32), nn.GELU(), nn.Linear(32, 2))


def batch():
    draw = torch.Generator().manual_seed(5)
    return torch.randn(8, 16, generator=draw), torch.randint(0, 2, (8,), generator=draw)


def opened(folder, stage):
    config = {
        "train_batch_size": 8, "optimizer": {"type": "AdamW", "params": {**ADAM, "torch_adam": True}},
        "gradient_clipping": 0.0, "zero_optimization": {"stage": stage}, "checkpoint": {"load_universal": True},
        "scheduler": {"type": "WarmupLR", "params": {"warmup_min_lr": 0.01, "warmup_max_lr": 0.01}},
    }  # fmt: skip
    model = build()
    matrices = [p for p in model.parameters() if p.dim() > 1]
    vectors = [p for p in model.parameters() if p.dim() <= 1]
    engine, *_ = deepspeed.initialize(model=model, model_parameters=[{"params": matrices}, {"params": vectors}], config=config)
    path, _ = engine.load_checkpoint(folder)
    assert path, "DeepSpeed found nothing"
    return engine


def held(engine):
    """Weights and optimizer state, `role:name`."""
    found = {}
    for name, parameter in engine.module.named_parameters():
        found[f"param:{name}"] = safe_get_full_fp32_param(parameter).clone()
        for key in ("exp_avg", "exp_avg_sq"):
            found[f"{key}:{name}"] = safe_get_full_optimizer_state(parameter, key).view(found[f"param:{name}"].shape).clone()
    return found


def by_hand(expected, steps):
    """The weights after one more step of plain AdamW."""
    model = build()
    optimizer = torch.optim.AdamW(model.parameters(), **ADAM)
    for name, parameter in model.named_parameters():
        parameter.data.copy_(expected[f"param:{name}"])
        state = {key: expected[f"{key}:{name}"].clone() for key in ("exp_avg", "exp_avg_sq")}
        optimizer.state[parameter] = {"step": torch.tensor(float(steps)), **state}
    points, labels = batch()
    nn.functional.cross_entropy(model(points), labels).backward()
    optimizer.step()
    return {f"param:{name}": parameter.detach() for name, parameter in model.named_parameters()}


def main(folder, expected_path):
    ranks = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "LOCAL_SIZE": "1"}
    os.environ.update(ranks, MASTER_ADDR="127.0.0.1", MASTER_PORT=str(free_port()))
    disable_shared_memory_op()
    deepspeed.init_distributed("gloo")
    values = dict(np.load(expected_path))
    steps = int(values.pop("steps"))
    expected = {key: torch.from_numpy(value) for key, value in values.items()}
    after = by_hand(expected, steps)
    for stage in (1, 2, 3):
        engine = opened(folder, stage)
        assert engine.global_steps == steps
        assert engine.lr_scheduler.last_batch_iteration == steps - 1
        read = held(engine)
        assert read.keys() == expected.keys(), read.keys() ^ expected.keys()
        for key, value in expected.items():
            assert torch.equal(read[key], value), (stage, key)
        if stage == 3:  # torch's AdamW counts in tensors, DeepSpeed's in numbers
            for state in engine.optimizer.optimizer.state.values():
                assert state["step"] == steps
                state["step"] = torch.tensor(float(steps))
        points, labels = batch()
        engine.backward(nn.functional.cross_entropy(engine(points), labels))
        engine.step()
        assert engine.lr_scheduler.last_batch_iteration == steps
        for key, value in held(engine).items():
            if key in after:
                assert torch.allclose(value, after[key], rtol=1e-6, atol=1e-7), (stage, key, (value - after[key]).abs().max())
        sys.stdout.write(f"stage {stage} is right\n")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
