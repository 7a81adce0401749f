"""After the ranks of an attempt are gone: what they have said is heard to the end, what they all had staged is stored and committed."""

from __future__ import annotations

import logging
from collections.abc import Callable

from orchestrator.supervision.attempt import Attempt
from orchestrator.supervision.context import RunContext
from orchestrator.supervision.departure import Departure
from orchestrator.supervision.inbox import FromAgent, Inbox
from orchestrator.supervision.listener import Listener
from orchestrator.supervision.rescue import Rescue
from orchestrator.supervision.status_board import StatusBoard
from orchestrator.supervision.worker_group import Group

SETTLE_LIMIT_S = 120.0
"""How long there may be no news of an upload before it is given up."""
LAST_WORDS_LIMIT_S = 5.0
"""How long word of the end of ranks that were killed may be on its way."""

log = logging.getLogger("orchestrator.supervisor")


class Settlement:
    def __init__(
        self, context: RunContext, group: Group, inbox: Inbox, board: StatusBoard, departure: Departure, listener: Listener,
        clock: Callable[[], float],
    ) -> None:  # fmt: skip
        self._context = context
        self._group = group
        self._inbox = inbox
        self._board = board
        self._departure = departure
        self._listener = listener
        self._clock = clock

    def settle(self, attempt: Attempt) -> None:
        """Until nothing more will come into the store. Under a preemption, as long as it fits the grace."""
        self._hear_last_words(attempt)
        limit, rescue = self._clock() + SETTLE_LIMIT_S, Rescue(self._context, self._group, attempt)
        while (steps := rescue.steps()) and not self._inbox.stops_now():
            staged = [pending for pending in attempt.on_their_way() if pending.step in steps]
            if self._clock() > limit:
                log.warning("step %d is not in the store after %.0f s without news, and is given up", staged[-1].step, SETTLE_LIMIT_S)
                return
            if self._departure.gives_up(staged):
                return
            self._board.show(phase=f"saving step {staged[-1].step}")
            if self._take(attempt, 1.0):
                limit = self._clock() + SETTLE_LIMIT_S

    def _hear_last_words(self, attempt: Attempt) -> None:
        """All that a rank has said comes before word of its end, which of one that was just killed may be on its way."""
        limit = self._clock() + LAST_WORDS_LIMIT_S
        while attempt.training and not self._all_ended(attempt) and not self._inbox.stops_now() and self._clock() < limit:
            self._take(attempt, 0.1)
        for item in self._inbox.rest():
            self._listener.take(attempt, item)

    def _all_ended(self, attempt: Attempt) -> bool:
        """Or their agent is gone, and says nothing more."""
        lost = {rank for bundle in self._group.missing() for rank in self._context.ranks(bundle)}
        return len(attempt.exited | lost) == attempt.world_size

    def _take(self, attempt: Attempt, wait_s: float) -> bool:
        """Whether there was news."""
        item = self._inbox.get(min(wait_s, self._departure.patience_s()))
        if item is not None:
            self._listener.take(attempt, item)
        return item is not None and not (isinstance(item, FromAgent) and item.is_beat)
