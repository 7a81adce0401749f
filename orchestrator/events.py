"""What is worth remembering of a job's life: one vocabulary for the event log, the command line and MLflow's tags."""

from __future__ import annotations

import enum
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


class EventKind(enum.Enum):
    SUBMITTED = "submitted"
    WAITING = "waiting"  # for a reason that is in other words than those before
    ADMITTED = "admitted"
    STARTED = "started"  # the first step of a worker group
    PREPARED = "prepared"  # the data set is there
    RESTORED = "restored"  # continued from a commit
    COMMITTED = "committed"
    RANK_LOST = "rank_lost"
    AGENT_LOST = "agent_lost"
    HANG = "hang"  # no rank moves; the event names who the others wait for, and where the stacks are
    STRAGGLER = "straggler"  # a rank computes for longer than the others, or does not any more
    SUPERVISOR_LOST = "supervisor_lost"
    RESTARTED = "restarted"
    PREEMPTED = "preempted"  # told to leave; or the save is abandoned, with its figures
    RECEIPT = "receipt"  # what the scheduler's order to leave has cost, by the ledger; told when the job trains again, or has ended
    PRIORITY = "priority"  # changed by a person
    RESIZED = "resized"  # it goes on with fewer workers, or leaves to go on with all of them
    CORRUPT_CHECKPOINT = "corrupt_checkpoint"  # named, and the commit before it is used
    CHAOS = "chaos"  # a fault that the job was told to bring upon itself
    EVALUATED = "evaluated"
    STOP_REQUESTED = "stop_requested"
    RESUMED = "resumed"
    ENDED = "ended"
    REMOVED = "removed"  # what it kept was deleted by a person
    WARNING = "warning"


class IncidentKind(enum.Enum):
    """What speaks against the machine it happened on: (label, what it weighs in the machine's score)."""

    BROKEN_DEVICE = ("broken device", 1.0)
    WRONG_BITS = ("wrong bits", 1.0)
    DEVICE_FAULT = ("device fault", 0.5)
    HANG = ("hang", 0.5)
    STRAGGLER = ("straggler", 0.5)
    LOST = ("lost node", 0.3)

    def __init__(self, label: str, weight: float) -> None:
        self.label = label
        self.weight = weight


@dataclass(frozen=True, kw_only=True)
class Event:
    """`fields` are JSON scalars. An event with the fields `incident` (an IncidentKind's name) and `node` counts against that machine.
    `time_s` is seconds since 1970."""

    kind: EventKind
    job_id: str
    time_s: float
    message: str
    fields: Mapping[str, Any] = field(default_factory=dict)


def wording(text: str) -> str:
    """Without the words that hold a figure, or a dash as ids do: when this changes, something else is said."""
    return re.sub(r"\S*[\d-]\S*", "", text)
