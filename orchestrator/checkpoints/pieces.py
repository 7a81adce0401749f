"""The unit in which training state goes in and out of an engine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from orchestrator.checkpoints.plan import Box, boxes_of

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, kw_only=True)
class StatePiece:
    """A row-major flat interval of one global state tensor, or of a block of it, as one rank holds it.

    To save, the pieces of all ranks tile every tensor exactly once. To restore, a rank names all it needs (replicas ask for
    the same bytes) and `data` is filled in place.
    """

    name: str
    """Fully qualified parameter or buffer name."""
    role: str
    """`param` (fp32 master where there is one), `buffer`, `ema`, or the optimizer's own key: `exp_avg`, `momentum_buffer` ..."""
    global_shape: tuple[int, ...]
    start: int
    """First element of the interval in the flattened block."""
    data: torch.Tensor
    """One-dimensional and contiguous; its length is the interval's. Shape [end - start]."""
    block: Box | None = None
    """The rectangular part of the tensor that the rank's tensor-parallel group gave it; None: all of it."""
    kept_as: torch.dtype | None = None
    """The type that a checkpoint has it in; None: that of `data`. Converted on the way, so that nobody needs memory for both."""

    @property
    def dtype(self) -> torch.dtype:
        """In a checkpoint."""
        return self.kept_as or self.data.dtype

    @property
    def end(self) -> int:
        return self.start + int(self.data.numel())

    @property
    def boxes(self) -> tuple[Box, ...]:
        """Where the elements of `data` lie in the global tensor, in their order."""
        if self.block is None:
            return boxes_of(self.global_shape, self.start, self.end)
        return tuple(box.moved(self.block.offset) for box in boxes_of(self.block.shape, self.start, self.end))
