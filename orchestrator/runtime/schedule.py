"""The learning rate of a step. Pure: no torch, no state, so a resumed job cannot disagree with a calm one."""

from __future__ import annotations

import math

from orchestrator.spec import OptimizerSpec, Schedule


def learning_rate(spec: OptimizerSpec, max_steps: int, step: int) -> float:
    """The rate of optimizer step `step` (1 to `max_steps`).

    Linear warm-up that reaches `spec.lr` at step `warmup_steps`; then the schedule, which ends at `min_lr_ratio * lr` at
    `max_steps`. Cosine as in SGDR (Loshchilov and Hutter 2017) without restarts.
    """
    if step <= spec.warmup_steps:
        return spec.lr * step / spec.warmup_steps
    if spec.schedule is Schedule.constant:
        return spec.lr
    share = (step - spec.warmup_steps) / (max_steps - spec.warmup_steps)
    left = 1 - share if spec.schedule is Schedule.linear else (1 + math.cos(math.pi * share)) / 2
    return spec.lr * (spec.min_lr_ratio + (1 - spec.min_lr_ratio) * left)
