"""The learning rate of a step. Pure: no torch, no state, so a resumed job cannot disagree with a calm one."""

from __future__ import annotations

import math

from orchestrator.spec import OptimizerSpec, Schedule


def learning_rate(spec: OptimizerSpec, max_steps: int, step: int) -> float:
    """The rate of optimizer step `step` (1 to `max_steps`).

    Linear warm-up that reaches `spec.lr` at step `warmup_steps`; then the schedule, which ends at `min_lr_ratio * lr` at
    `max_steps`. Cosine as in SGDR (Loshchilov and Hutter 2017) without restarts. WSD, warm-up - stable - decay, as in MiniCPM
    (Hu et al. 2024, arXiv:2404.06395, section 4): constant, then falling over the last `decay_share` of the steps, here in a
    straight line.
    """
    if step <= spec.warmup_steps:
        return spec.lr * step / spec.warmup_steps
    return spec.lr * (spec.min_lr_ratio + (1 - spec.min_lr_ratio) * _left(spec, max_steps, step))


def _left(spec: OptimizerSpec, max_steps: int, step: int) -> float:
    """How much of the way down is still ahead after warm-up: from 1 to 0 at `max_steps`."""
    share = (step - spec.warmup_steps) / (max_steps - spec.warmup_steps)
    match spec.schedule:
        case Schedule.constant:
            return 1.0
        case Schedule.linear:
            return 1 - share
        case Schedule.cosine:
            return (1 + math.cos(math.pi * share)) / 2
        case Schedule.wsd:
            return min(1.0, (max_steps - step) / max(1, round(spec.decay_share * max_steps)))
