"""Faults that a job brings upon itself, so that it can be seen how it takes them."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING

from orchestrator.spec.checks import at_least, require

if TYPE_CHECKING:
    from orchestrator.spec.job import JobSpec

_NO_COUNTS = ("seed", "first_step", "last_step", "slow_s", "hide_s")
_NEED_WATCH = ("stop_rank", "hold_gil")
_RESTART = ("kill_rank", "stop_rank", "hold_gil", "drop_connection", "kill_agent", "kill_warm", "kill_supervisor", "flip_bit")
"""Faults that cost a restart each."""


@dataclass(frozen=True, kw_only=True)
class ChaosSpec:
    """How many faults of each kind befall the job, each once over all its lives. All 0: no chaos."""

    seed: int = 0
    """What is drawn from it: at which step, in which phase, to which rank."""
    first_step: int = 1
    last_step: int = 0
    """Faults fall between these steps, both included; 0: training.max_steps."""

    kill_rank: int = 0
    """A rank gets SIGKILL."""
    stop_rank: int = 0
    """A rank gets SIGSTOP. Where a step has no usual length yet, it is found after recovery.long_phase_timeout_s only."""
    hold_gil: int = 0
    """A rank's thread keeps Python's lock and does not come back. Found as above."""
    slow_rank: int = 0
    """A rank is `slow_s` late in each of ten steps."""
    slow_s: float = 0.1
    drop_connection: int = 0
    """All TCP connections of a rank are shut down: to other ranks and to the store."""
    flip_bit: int = 0
    """A bit of a rank's own copy of the weights flips. Only at ZeRO 0: there the copy is what the next step goes on from."""
    kill_agent: int = 0
    """The agent of a rank's node gets SIGKILL."""
    kill_uploader: int = 0
    """The uploader of a rank's node gets SIGKILL."""
    kill_warm: int = 0
    """The warm process of a rank's node gets SIGKILL, and its ranks die with it."""
    kill_raylet: int = 0
    """The raylet of a node that is not the head gets SIGKILL; nobody brings the node back. Only on a cluster given by address."""
    kill_supervisor: int = 0
    """The job's supervisor gets SIGKILL."""
    kill_controller: int = 0
    """The control plane gets SIGKILL, for all jobs. Only on a local cluster, whose keeper brings it back."""
    fail_store_call: int = 0
    """A call of the supervisor to the object store fails, is answered late, twice, or its answer is lost."""
    hide_tracking: int = 0
    """The tracking writer is killed, and the next one finds no server for `hide_s`."""
    hide_s: float = 5.0

    def __post_init__(self) -> None:
        at_least(0, "chaos", self, *(name for name in self.__dataclass_fields__ if name not in ("seed", "first_step")))
        at_least(1, "chaos", self, "first_step")

    @property
    def counts(self) -> dict[str, int]:
        """Kind of fault -> how often, where it is not 0."""
        names = (field.name for field in dataclasses.fields(self) if field.name not in _NO_COUNTS)
        return {name: getattr(self, name) for name in names if getattr(self, name)}

    @property
    def on(self) -> bool:
        return bool(self.counts)


def check_chaos(spec: JobSpec) -> None:
    """What a job with these settings can be put through. Raises ConfigError."""
    chaos, steps = spec.chaos, spec.training.max_steps
    if not chaos.on:
        return
    last = chaos.last_step or steps
    require(last <= steps, "chaos.last_step", last, f"at most training.max_steps={steps}, or 0 for just that")
    require(chaos.first_step <= last, "chaos.first_step", chaos.first_step, f"1 to {last}, the last step of chaos")
    for name in _NEED_WATCH:
        count, watched = getattr(chaos, name), spec.recovery.hang_timeout_s > 0
        require(watched or not count, f"chaos.{name}", count, "0 at recovery.hang_timeout_s=0, where nobody would find it")
    stage, kept = spec.parallelism.zero_stage, spec.parallelism.zero_stage == 0 and spec.replica_check_steps > 0
    allowed = f"0 at parallelism.zero_stage={stage}, guard.replica_check_steps={spec.guard.replica_check_steps} and " \
        f"resources.num_workers={spec.resources.num_workers}, where nobody would find it: it needs copies that are compared"
    require(kept or not chaos.flip_bit, "chaos.flip_bit", chaos.flip_bit, allowed)
    tracked = spec.tracking.enabled or not chaos.hide_tracking
    require(tracked, "chaos.hide_tracking", chaos.hide_tracking, "0 at tracking.enabled=false: there is nothing to hide")
    address = spec.cluster.address
    allowed = "0 without cluster.address: the only node of a local cluster is its head"
    require(bool(address) or not chaos.kill_raylet, "chaos.kill_raylet", chaos.kill_raylet, allowed)
    allowed = f"0 at cluster.address={address}: only a local cluster has a keeper that starts the control plane again"
    require(not address or not chaos.kill_controller, "chaos.kill_controller", chaos.kill_controller, allowed)
    restarts, most = sum(chaos.counts.get(name, 0) for name in _RESTART), spec.recovery.max_restarts
    require(restarts <= most, "recovery.max_restarts", most, f"{restarts} or more: so many restarts the faults of chaos cost")
