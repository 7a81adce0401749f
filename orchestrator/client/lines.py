"""What the ranks of a job printed, as it is given out."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Line:
    """What a rank printed, of one epoch: a life of its worker group."""

    rank: int
    epoch: int
    time_s: float
    """When it reached the store, about a second after it was printed; 0: not known."""
    text: str
    offset: str = ""
    """What comes after this line is read from here; empty where it was not asked for."""


@dataclass(frozen=True, kw_only=True)
class Lines:
    lines: tuple[Line, ...]
    offset: str
    """What comes after these lines is read from here, at any time."""
    ended: bool
    """The job has ended, and these are its last lines."""
