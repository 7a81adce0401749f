"""An exponential moving average of the weights, beside the fp32 masters: each rank averages what it holds of them, so nothing is sent.

After each optimizer step average <- decay average + (1 - decay) weights (Polyak and Juditsky 1992 average with equal weights; this form:
Tarvainen and Valpola 2017, arXiv:1703.01780). It begins as the weights that training begins from. Costs 4 bytes per master element.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from orchestrator.runtime.state import EngineState

ROLE = "ema"
"""The role of its pieces in a checkpoint."""


class WeightAverage:
    """The average of one rank's masters; without a decay it holds nothing and does nothing.

    Buffers, such as the running statistics of a batch norm, are those of the weights in training.
    """

    def __init__(self, state: EngineState, decay: float, evaluated: bool) -> None:
        """`decay` in [0, 1), 0: off. `evaluated`: whether `swapped_in` puts it in the place of the weights."""
        self._state = state
        self._decay = decay
        self._evaluated = evaluated
        masters = state.masters() if decay else {}
        self._masters = list(masters.values())
        self._averages = [master.clone() for master in self._masters]
        if decay:
            state.beside[ROLE] = dict(zip(masters, self._averages, strict=True))

    @torch.no_grad()
    def begin(self) -> None:
        """From the present weights: a job that goes on from a checkpoint without an average."""
        for average, master in zip(self._averages, self._masters, strict=True):
            average.copy_(master)

    @torch.no_grad()
    def update(self) -> None:
        """After each optimizer step that was made. One kernel for many tensors on a GPU."""
        if self._averages:
            torch._foreach_lerp_(self._averages, self._masters, 1 - self._decay)

    @contextmanager
    def swapped_in(self) -> Iterator[None]:
        """Inside, the model computes with the average; afterwards masters and weights have every bit back. All ranks together.

        An error inside is passed on without a way back: that takes all ranks, and the others may not have failed.
        """
        if not (self._averages and self._evaluated):
            yield
            return
        self._exchange()
        yield
        self._exchange()

    @torch.no_grad()
    def _exchange(self) -> None:
        for average, master in zip(self._averages, self._masters, strict=True):
            held = master.clone()
            master.copy_(average)
            average.copy_(held)
        self._state.refresh()
