"""Faults that a rank brings upon itself and its node, at the very step and phase that they are planned for."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch

from orchestrator.chaos import acts
from orchestrator.chaos.claims import Claims
from orchestrator.chaos.plan import Fault, Kind
from orchestrator.runtime.link import AgentLink, Phase, ProgressClock
from orchestrator.runtime.task import RankTask
from orchestrator.spec import JobSpec
from orchestrator.storage import open_store

SLOW_STEPS = 10

Acts = Mapping[Kind, Callable[[], object]]


def progress_clock(task: RankTask, spec: JobSpec, link: AgentLink) -> ProgressClock:
    """The rank's clock. Only that of a rank which faults await is another one than usual."""
    path = Path(task.clock)
    if not task.faults:
        return ProgressClock(path)
    claims = Claims(open_store(spec.storage), task.job_id)
    faults = [Fault.from_dict(values) for values in task.faults]
    return StrikingClock(path, faults, claims, link, task.rank, acts_of(link.agent_pid), spec.chaos.slow_s)


class StrikingClock(ProgressClock):
    """A clock whose ticks do what is due; each fault is claimed and told first. One whose kind `acts` lacks is not this rank's to do."""

    def __init__(
        self, path: Path, faults: Sequence[Fault], claims: Claims, link: AgentLink, rank: int, acts: Acts, slow_s: float
    ) -> None:  # fmt: skip
        super().__init__(path)
        self._claims = claims
        self._link = link
        self._rank = rank
        self._acts: Acts = {**acts, Kind.SLOW_RANK: self._begin_slow, Kind.FLIP_BIT: lambda: flip_bit(self.replicated())}
        self.replicated: Callable[[], Sequence[torch.Tensor]] = tuple
        """What this rank holds a copy of, as soon as it has built it."""
        self._slow_s = slow_s
        self._slow_steps = range(0)
        self._pending = [fault for fault in faults if fault.kind in self._acts]

    def tick(self, step: int, phase: Phase) -> None:
        if step != self._step and step in self._slow_steps:
            time.sleep(self._slow_s)
        super().tick(step, phase)
        for fault in [fault for fault in self._pending if step >= fault.step and phase.name.lower() == fault.phase]:
            self._pending.remove(fault)
            if self._claims.claim(fault, step, f"rank {self._rank}"):
                told = f"{fault.name} by rank {self._rank} at {fault.phase} of step {step}"
                self._link.send("chaos", fault=fault.name, step=step, text=told)
                self._acts[fault.kind]()

    def _begin_slow(self) -> None:
        self._slow_steps = range(self._step + 1, self._step + 1 + SLOW_STEPS)


def flip_bit(tensors: Sequence[torch.Tensor]) -> None:
    """In the middle of the largest of them; no bit of an exponent, so that all stays finite."""
    words = max(tensors, key=lambda tensor: tensor.numel()).detach().view(-1).view(torch.uint8)
    middle = words.numel() // 2 & ~7
    words[middle] ^= 1 << 6


def acts_of(agent: int) -> Acts:
    """What a rank of the agent with that pid can do, by kind."""
    raylet = acts.raylet_of(agent)
    found: dict[Kind, Callable[[], object]] = {
        Kind.KILL_RANK: lambda: acts.kill(os.getpid()),
        Kind.STOP_RANK: acts.stop_self,
        Kind.HOLD_GIL: acts.hold_gil,
        Kind.DROP_CONNECTION: acts.drop_connections,
        Kind.KILL_AGENT: lambda: acts.kill(agent),
        Kind.KILL_UPLOADER: lambda: _kill_uploader(agent),
        Kind.KILL_WARM: lambda: acts.kill(os.getppid()),
    }
    return found if raylet is None else {**found, Kind.KILL_RAYLET: lambda: acts.kill(raylet)}


def _kill_uploader(agent: int) -> None:
    uploader = acts.uploader_of(agent)
    if uploader is not None:
        acts.kill(uploader)
