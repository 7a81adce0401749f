"""Which rank the others wait for: from how far each has come, the state of its process and its stack. Pure.

    1. a process that is stopped, or that waits in the kernel, is why the others wait
    2. who has come less far than the others has not entered what they are in
    3. of ranks that are equally far, who is in no collective keeps those waiting who are
    4. all wait in a collective: none of them is at fault, what they say to each other does not arrive. That some have come farther says
       nothing then, since a collective may have ended for one rank and not for another
    5. but if it is a collective of the workload's own, others have passed it: of both, the fewer are those that went another way
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any

from orchestrator.job import EndReason, Remedy
from orchestrator.supervision.diagnosis import Verdict

STATES = {"T": "is stopped by a signal", "t": "is stopped by a debugger", "D": "waits in the kernel, for a disk or a driver"}
_FRAME = re.compile(r'^\s*File "(?P<file>[^"]+)", line (?P<line>\d+) in (?P<function>.+)$')
_COLLECTIVE = re.compile(r"/torch/distributed/distributed_c10d\.py$|/deepspeed/comm/torch\.py$")
_WRAPPER = re.compile(r"/torch/distributed/c10d_logger\.py$|/deepspeed/comm/comm\.py$")
_LIBRARY = re.compile(r"/(torch|deepspeed|transformers|numpy|orchestrator)/(?!_workloads)|/lib/python3|^<")
_MAIN = re.compile(r"/orchestrator/runtime/warm\.py$")


@dataclass(frozen=True)
class Frame:
    file: str
    line: int
    function: str

    def __str__(self) -> str:
        return f"{self.file.rsplit('/', 1)[-1]}:{self.line} ({self.function})"


@dataclass(frozen=True, kw_only=True)
class RankView:
    """One rank as its agent saw it."""

    rank: int
    step: int
    moves: int
    """Changes of the phase since the step began."""
    phase: str
    still_s: float
    state: str = "S"
    """Of the process, as in /proc: `R`, `S`, `D`, `T` ..."""
    stack: str = ""
    """As `faulthandler` writes it; empty: the rank did not answer."""
    log_tail: str = ""

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> RankView:
        return cls(**{name: values[name] for name in cls.__dataclass_fields__ if name in values})

    @property
    def place(self) -> tuple[int, int]:
        return self.step, self.moves


def explain(views: Sequence[RankView]) -> Verdict:
    """The verdict over all ranks of a job that stands still; at least one view."""
    frames = {view.rank: main_frames(view.stack) for view in views}
    waits = {view.rank: collective(frames[view.rank]) for view in views}
    culprits, why = _culprits(views, waits, {rank for rank in frames if waits[rank] and _is_of_workload(frames[rank])})
    others = [view for view in views if view not in culprits]
    first = min(culprits, key=lambda view: view.rank) if culprits else min(views, key=lambda view: (view.place, view.rank))
    at = user_frame(frames[first.rank])
    if not culprits:
        names = " and ".join(sorted(set(waits.values())))
        sentence = f"all ranks wait in {names} of step {first.step}: what they say to each other does not arrive"
        return _verdict(first, sentence, ("connection", first.phase), external=True)
    sentence = _accusation(culprits, others, why, at)
    if others:
        waiting = " and ".join(sorted({waits[view.rank] for view in others} - {""}))
        sentence += f"; {_ranks(others)} {_many('waits', others)}" + (f" in {waiting}" if waiting else "")
    known = (why, first.phase, f"{at.file}:{at.function}") if at else (why, first.phase)
    return _verdict(first, sentence, known, external=why == "state", own_code=why == "passed" or waits[first.rank] != "")


def main_frames(stack: str) -> list[Frame]:
    """The frames of the rank's main thread, innermost first."""
    threads: list[list[Frame]] = []
    for line in stack.splitlines():
        if line.endswith("(most recent call first):"):
            threads.append([])
        elif threads and (found := _FRAME.match(line)):
            threads[-1].append(Frame(found["file"], int(found["line"]), found["function"]))
    mains = [frames for frames in threads if any(_MAIN.search(frame.file) for frame in frames)]
    return (mains or threads or [[]])[-1]


def collective(frames: Sequence[Frame]) -> str:
    """The collective that a stack waits in: `all_reduce` ...; empty: none."""
    inner = [frame for frame in frames if not _WRAPPER.search(frame.file)]
    return inner[0].function if inner and _COLLECTIVE.search(inner[0].file) else ""


def user_frame(frames: Sequence[Frame]) -> Frame | None:
    """The innermost frame of the workload's own code; else the innermost of all."""
    own = [frame for frame in frames if not _LIBRARY.search(frame.file)]
    return next(iter(own or frames), None)


def _is_of_workload(frames: Sequence[Frame]) -> bool:
    """Whether the workload's own code has called the collective that the stack waits in."""
    callers = [frame for frame in frames if not (_COLLECTIVE.search(frame.file) or _WRAPPER.search(frame.file))]
    return bool(callers) and not _LIBRARY.search(callers[0].file)


def _culprits(views: Sequence[RankView], waits: Mapping[int, str], own: Set[int]) -> tuple[list[RankView], str]:
    """`own`: ranks that wait in a collective of the workload's own."""
    halted = [view for view in views if view.state in STATES]
    if halted and len(halted) < max(len(views), 2):
        return halted, "state"
    least = min(view.place for view in views)
    behind = [view for view in views if view.place == least]
    idle = [view for view in views if not waits[view.rank]]
    idle = [view for view in idle if view.stack] or idle  # of one that did not answer, what it does is not known
    idle_behind = [view for view in behind if not waits[view.rank]]
    if len(behind) == len(views) or (idle and not idle_behind):
        return idle, "outside"
    if idle_behind:
        return idle_behind, "behind"
    if not any(view.rank in own for view in behind):
        return [], "outside"
    passed = [view for view in views if view not in behind]
    return (passed, "passed") if len(passed) < len(behind) else (behind, "behind")


def _accusation(culprits: Sequence[RankView], others: Sequence[RankView], why: str, at: Frame | None) -> str:
    first = min(culprits, key=lambda view: view.rank)
    where = f"{first.phase} of step {first.step}" + (f", at {at}" if at else "")
    match why:
        case "state":
            return f"{_ranks(culprits)} {_many(STATES[first.state], culprits)} in {first.phase} of step {first.step}"
        case "behind":
            ahead = min(others, key=lambda view: view.place)
            return f"{_ranks(culprits)} never entered {ahead.phase} of step {ahead.step}: last seen in {where}"
        case "passed":
            missed = min(others, key=lambda view: view.place)
            return f"{_ranks(culprits)} did not enter what the workload calls in {missed.phase} of step {missed.step}: last seen in {where}"
        case _:
            return f"{_ranks(culprits)} {_many('does', culprits)} not move in {where}"


def _ranks(views: Sequence[RankView]) -> str:
    numbers = sorted(view.rank for view in views)
    return f"{'rank' if len(numbers) == 1 else 'ranks'} {', '.join(map(str, numbers))}"


def _many(verb: str, views: Sequence[RankView]) -> str:
    """`waits` of one, `wait` of more."""
    if len(views) == 1:
        return verb
    first, _, rest = verb.partition(" ")
    plural = {"is": "are", "does": "do"}.get(first, first.removesuffix("s"))
    return f"{plural} {rest}".strip()


def _verdict(view: RankView, sentence: str, known: Sequence[str], external: bool, own_code: bool = False) -> Verdict:
    """`external`: it did not stop by itself. `own_code`: it waits, in its code, for what the others do not do: no machine's fault."""
    return Verdict(
        reason=EndReason.HANG, remedy=Remedy.RESTART if external else Remedy.RETRY, rank=view.rank, sentence=sentence,
        fingerprint=":".join(("hang", *known)), traceback=view.stack, points_at_rank=view.state == "D" or not (external or own_code),
    )  # fmt: skip
