"""The unit in which training state goes in and out of an engine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, kw_only=True)
class StatePiece:
    """A row-major flat interval of one global state tensor, as one rank holds it.

    To save, the pieces of all ranks tile every tensor exactly once. To restore, a rank names all it needs (replicas ask for
    the same bytes) and `data` is filled in place.
    """

    name: str
    """Fully qualified parameter or buffer name."""
    role: str
    """`param` (fp32 master where there is one), `buffer`, or the optimizer's own key: `exp_avg`, `exp_avg_sq`, `momentum_buffer`."""
    global_shape: tuple[int, ...]
    start: int
    """First element of the interval in the flattened global tensor."""
    data: torch.Tensor
    """One-dimensional and contiguous; its length is the interval's. Shape [end - start]."""

    @property
    def end(self) -> int:
        return self.start + int(self.data.numel())
