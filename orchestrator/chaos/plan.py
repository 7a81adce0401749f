"""Which faults befall a job, when and where: a function of its spec and of how many ranks it has. Pure.

Every fault is drawn by itself from (seed, kind, number), so more faults of one kind leave the others where they were.
"""

from __future__ import annotations

import dataclasses
import enum
import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from orchestrator.spec import JobSpec

PHASES = ("data", "forward", "backward", "optimizer", "collective", "checkpoint")
"""In which a rank can be when it is struck; names of `runtime.link.Phase`."""
SUPERVISOR_PHASES = ("figures", "commit")
"""What the supervisor is about to take when it strikes: the figures of a log step, or a save that is whole in the store."""
ANSWERS = ("unavailable", "lost_answer", "duplicate", "delay")
"""How a call to the store fails; kinds of `storage.Fault`."""
MAX_CALLS = 8
MAX_TIMES = 3


class Kind(enum.Enum):
    """What is done. The values are the counts' names in `ChaosSpec`."""

    KILL_RANK = "kill_rank"
    STOP_RANK = "stop_rank"
    HOLD_GIL = "hold_gil"
    SLOW_RANK = "slow_rank"
    DROP_CONNECTION = "drop_connection"
    FLIP_BIT = "flip_bit"
    KILL_AGENT = "kill_agent"
    KILL_UPLOADER = "kill_uploader"
    KILL_WARM = "kill_warm"
    KILL_RAYLET = "kill_raylet"
    KILL_SUPERVISOR = "kill_supervisor"
    KILL_CONTROLLER = "kill_controller"
    FAIL_STORE_CALL = "fail_store_call"
    HIDE_TRACKING = "hide_tracking"

    @property
    def by_supervisor(self) -> bool:
        """The others are done by a rank, at the very step and phase."""
        return self in (Kind.KILL_SUPERVISOR, Kind.KILL_CONTROLLER, Kind.FAIL_STORE_CALL, Kind.HIDE_TRACKING)


@dataclass(frozen=True, kw_only=True)
class Fault:
    """It befalls the job when `phase` begins at `step` or later: as soon as there is somebody to do it."""

    name: str
    """Of this fault among all of the job: `kill_rank-2`."""
    kind: Kind
    step: int
    phase: str
    rank: int | None = None
    """None: whoever comes there first, or no rank's business."""
    answer: str = ""
    """Of a call to the store."""
    call: int = 0
    """The how-manyth call from now on."""
    times: int = 0
    """How many calls in a row."""

    def __str__(self) -> str:
        rank = "a rank" if self.rank is None else f"rank {self.rank}"
        how = f", {self.answer} of {self.times} from call {self.call} on" if self.times else ""
        return f"{self.name} by {'the supervisor' if self.kind.by_supervisor else rank} at {self.phase} of step {self.step}{how}"

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {**dataclasses.asdict(self), "kind": self.kind.value}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Fault:
        return cls(**{**values, "kind": Kind(values["kind"])})


def plan(spec: JobSpec, world_size: int) -> list[Fault]:
    """All faults of the job, by step. The same for the same spec and number of ranks."""
    found = [_draw(spec, Kind(name), number, world_size) for name, count in spec.chaos.counts.items() for number in range(1, count + 1)]
    return sorted(found, key=lambda fault: (fault.step, fault.name))


def _draw(spec: JobSpec, kind: Kind, number: int, world_size: int) -> Fault:
    rng = random.Random(f"{spec.chaos.seed} {kind.value} {number}")
    step = rng.randint(spec.chaos.first_step, spec.chaos.last_step or spec.training.max_steps)
    phase = rng.choice(SUPERVISOR_PHASES if kind.by_supervisor else PHASES)
    if kind is Kind.FLIP_BIT:
        phase = "optimizer"  # when no save still copies: one that took the bit along would be as good as what it was taken from
    fault = Fault(name=f"{kind.value}-{number}", kind=kind, step=step, phase=phase)
    if kind is Kind.FAIL_STORE_CALL:
        return dataclasses.replace(fault, answer=rng.choice(ANSWERS), call=rng.randint(1, MAX_CALLS), times=rng.randint(1, MAX_TIMES))
    if kind.by_supervisor or kind is Kind.KILL_RAYLET:
        return fault
    return dataclasses.replace(fault, rank=rng.randrange(world_size))
