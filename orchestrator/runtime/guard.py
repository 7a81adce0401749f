"""Numbers that go wrong: found on all ranks at the same step, before they are saved, with the rank that had them first.

What is looked at costs a few additions on the device per step; it is read where the loop reads the loss anyway, and before a save. The
figures that decide are the same on every rank, so all ranks raise the same error; those that only heard of it mark theirs as an echo.
"""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist

from orchestrator.errors import LossSpike, NotFinite, ReplicaDrift, TrainingError
from orchestrator.spec import GuardSpec, Precision

WINDOW = 100
"""Losses of log steps that a new one is compared with."""
LEAST = 20
SCALE = 1.4826
"""From the median absolute deviation to a standard deviation, of normal values."""


class Guard:
    def __init__(self, spec: GuardSpec, precision: Precision) -> None:
        self._factor = spec.spike_factor
        self._norms = precision is not Precision.fp16  # there a gradient beyond the format is the loss scale's to mend
        self._losses: deque[float] = deque(maxlen=WINDOW)
        self._loss: Any = 0.0
        self._norm: Any = 0.0
        self._checked_at = 0
        """Global position of the samples up to which all was well."""

    def go_on(self, position: int, losses: Sequence[float]) -> None:
        """From a checkpoint: `losses` of the log steps before it."""
        self._losses = deque(losses, maxlen=WINDOW)
        self._checked_at = position

    @property
    def losses(self) -> list[float]:
        return list(self._losses)

    def watch(self, loss: torch.Tensor, norm: Any) -> None:
        """Of each step. Stays on the device: a NaN or an infinity makes the sum NaN, and so it stays."""
        self._loss = self._loss + 0.0 * loss
        if self._norms and norm is not None:
            self._norm = self._norm + 0.0 * norm

    @property
    def votes(self) -> tuple[float, float]:
        """1 or 0: whether this rank has had a loss, and all together a gradient, that was not finite since the last check."""
        return float(not math.isfinite(float(self._loss))), float(not math.isfinite(float(self._norm)))

    def check(self, step: int, position: int, bad_losses: float, bad_norms: float, mean_loss: float | None) -> None:
        """The sums of all ranks' votes; `mean_loss`: over all ranks, of a log step. Raises NotFinite, LossSpike."""
        mine, self._loss, self._norm = self.votes[0], 0.0, 0.0
        error: TrainingError | None = None
        if bad_losses:
            error = NotFinite(f"the loss is not finite at step {step}")
            error.echo = not mine
        elif bad_norms:
            error = NotFinite(f"the loss is finite and the gradient is not at step {step}")
        elif mean_loss is not None and self._is_spike(mean_loss):
            before = f"{statistics.median(self._losses):.4g} in the median of {len(self._losses)} log steps"
            error = LossSpike(f"the loss is {mean_loss:.4g} at step {step}, after {before}")
        if error is not None:
            error.window = (self._checked_at, position)
            raise error
        if mean_loss is not None:
            self._losses.append(mean_loss)
        self._checked_at = position

    def _is_spike(self, loss: float) -> bool:
        if not self._factor or len(self._losses) < LEAST:
            return False
        median = statistics.median(self._losses)
        deviation = SCALE * statistics.median(abs(value - median) for value in self._losses)
        return loss - median > self._factor * max(deviation, 1e-3 * abs(median))


def check_replicas(step: int, tensors: Sequence[torch.Tensor]) -> None:
    """`tensors`: what each rank holds a whole copy of, in the same order; at least one. Raises ReplicaDrift if their bits differ.

    A flipped bit changes the sum of a tensor's words modulo 2**64. What most ranks hold is right; of two ranks, both are named.
    """
    sums = torch.stack([_words(tensor) for tensor in tensors])
    found = [torch.empty_like(sums) for _ in range(dist.get_world_size())]
    dist.all_gather(found, sums)
    copies = torch.stack(found).cpu()
    texts = [copy.numpy().tobytes() for copy in copies]
    usual = statistics.mode(texts)
    if texts.count(usual) == len(texts):
        return
    has_majority = 2 * texts.count(usual) > len(texts)
    wrong = [rank for rank, text in enumerate(texts) if text != usual or not has_majority]
    differ = int((copies != copies[0]).any(0).sum())
    error = ReplicaDrift(f"at step {step} {differ} of {len(tensors)} tensors are not the same on all ranks: wrong on {_named(wrong)}")
    error.echo = dist.get_rank() not in wrong
    raise error


def _words(tensor: torch.Tensor) -> torch.Tensor:
    """Sum of the tensor's words, int64, modulo 2**64."""
    flat = tensor.detach().contiguous().view(-1)
    word = {2: torch.int16, 4: torch.int32, 8: torch.int64}.get(flat.element_size(), torch.int8)
    return flat.view(word).sum(dtype=torch.int64)


def _named(ranks: Sequence[int]) -> str:
    return f"rank {ranks[0]}" if len(ranks) == 1 else f"ranks {', '.join(map(str, ranks))}"
