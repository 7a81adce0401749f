"""A run that is preempted: what is saved still, what is abandoned because the grace is too short for it, and with which figures."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

from orchestrator.events import EventKind
from orchestrator.supervision.attempt import Attempt, Staged
from orchestrator.supervision.chronicle import Chronicle
from orchestrator.supervision.context import RunContext
from orchestrator.supervision.inbox import Inbox
from orchestrator.supervision.preemption import Judgement, SaveCost, judge, measured

LOOK_INTERVAL_S = 0.1


class Departure:
    """Judges by what the newest committed save has cost. Without a preemption in the inbox it wants nothing."""

    def __init__(self, context: RunContext, inbox: Inbox, chronicle: Chronicle, clock: Callable[[], float]) -> None:
        self._max_steps = context.spec.training.max_steps
        self._limit_bytes_per_s = context.spec.checkpoint.max_upload_mb_per_s * 1e6 * len(context.ranks_per_bundle)
        self._inbox = inbox
        self._chronicle = chronicle
        self._clock = clock
        self._cost = SaveCost()
        self._is_noticed = False
        self._staged_before: Staged | None = None

    def saved(self, cost: Mapping[str, float]) -> None:
        """A save was committed; `cost` as in its event."""
        self._cost = measured(cost["stage_s"], int(cost["num_bytes"]), cost["upload_s"], cost["commit_s"], self._limit_bytes_per_s)

    def patience_s(self) -> float:
        """How long it may be until something is to be judged again."""
        return math.inf if self._inbox.preemption is None else LOOK_INTERVAL_S

    def over(self, attempt: Attempt) -> str | None:
        """None while the ranks have time; else why they are to be ended now, for people. What is chosen is told."""
        preemption = self._inbox.preemption
        if preemption is None:
            return None
        if not attempt.training:
            return "it had not trained a step since its start"
        now, is_first = self._clock(), not self._is_noticed
        if is_first:
            self._is_noticed, self._staged_before = True, attempt.newest_staged
        pending, comes = attempt.on_their_way(), not self._is_staged(attempt)
        judgement = judge(
            self._cost, stages=comes, num_bytes=sum(staged.num_bytes for staged in pending) + comes * self._cost.num_bytes,
            sending_s=now - pending[0].since_s if pending else 0.0, grace_s=preemption.deadline_s - now,
        )  # fmt: skip
        step = self._chronicle.board.progress.step if comes or not pending else pending[-1].step
        if judgement.fits:
            if is_first:
                self._tell(f"{preemption.why}: it saves and leaves; {judgement.sentence}", "save", step, judgement)
            return None
        if not comes and not pending:
            return "it was saved, and did not leave by itself"
        what = f"the save of step {step} is abandoned: {judgement.sentence}"
        self._tell(f"{preemption.why}; {what}" if is_first else what, "abandon", step, judgement)
        return what

    def gives_up(self, staged: Sequence[Staged]) -> bool:
        """Whether not even the first of what is on its way to the store fits any more."""
        if self._inbox.preemption is None:
            return False
        now, first = self._clock(), staged[0]
        grace_s = self._inbox.preemption.deadline_s - now
        return not judge(self._cost, stages=False, num_bytes=first.num_bytes, sending_s=now - first.since_s, grace_s=grace_s).fits

    def _is_staged(self, attempt: Attempt) -> bool:
        """The save that the ranks were ordered to make, or the last of all."""
        newest = attempt.newest_staged
        return newest is not None and (newest is not self._staged_before or newest.step >= self._max_steps)

    def _tell(self, message: str, choice: str, step: int, judgement: Judgement) -> None:
        self._chronicle.tell(EventKind.PREEMPTED, message, choice=choice, step=step, **judgement.figures)
