"""The ranks that restore together: what a restore asks of them. A rank alone is here; those of a process group are the runtime's."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

import numpy as np
import torch

Messages = Sequence[tuple[int, torch.Tensor]]
"""(other rank, bytes on the host): uint8, one-dimensional and contiguous."""


class Peers(Protocol):
    """Every method is called by all ranks together."""

    rank: int
    nodes: Sequence[int]
    """By rank: the node whose memory it shares."""

    def gather(self, mine: np.ndarray) -> list[np.ndarray]:
        """The array of every rank: int64, of one dimension, of any length."""

    def settle(self, error: Exception | None) -> None:
        """Raises the error of the first rank that has one, on every rank; returns when all have come without."""

    def share(self, num_bytes: int) -> dict[int, torch.Tensor]:
        """Memory for this rank of `num_bytes`, and that of the other ranks of its node, by rank: uint8."""

    def transfer(self, sends: Messages, receives: Messages) -> None:
        """Send and receive all; between two ranks in the order given."""


class Alone:
    """One rank without a process group."""

    rank = 0
    nodes: Sequence[int] = (0,)

    def gather(self, mine: np.ndarray) -> list[np.ndarray]:
        return [mine]

    def settle(self, error: Exception | None) -> None:
        if error is not None:
            raise error

    def share(self, num_bytes: int) -> dict[int, torch.Tensor]:
        return {0: private_memory(num_bytes)}

    def transfer(self, sends: Messages, receives: Messages) -> None:
        assert not sends and not receives, "there is nobody else"


def private_memory(num_bytes: int) -> torch.Tensor:
    """Fresh memory costs a third where its pages are large, which numpy asks for and torch does not."""
    return torch.from_numpy(np.empty(num_bytes, dtype=np.uint8))


@contextmanager
def agreed(peers: Peers) -> Iterator[None]:
    """The block went well on every rank, or the first failing rank's error is raised on all."""
    error = None
    try:
        yield
    except Exception as found:  # noqa: BLE001  raised by settle, on all ranks
        error = found
    peers.settle(error)
