"""What the agents say of an attempt, and what it means: for the attempt, the committer, the chronicle and the ledger. No Ray."""

from __future__ import annotations

from collections.abc import Callable

from orchestrator.errors import CorruptObject
from orchestrator.events import EventKind
from orchestrator.supervision.attempt import Attempt, SavedCheckpoint
from orchestrator.supervision.bookkeeper import Bookkeeper
from orchestrator.supervision.chaos import Chaos
from orchestrator.supervision.chronicle import Chronicle
from orchestrator.supervision.committer import Committer
from orchestrator.supervision.context import RunContext
from orchestrator.supervision.departure import Departure
from orchestrator.supervision.inbox import AgentDied, FromAgent, Inbox, Message
from orchestrator.supervision.preemption import notice
from orchestrator.supervision.straggler_watch import StragglerWatch
from orchestrator.supervision.worker_group import Group


class Listener:
    def __init__(
        self, context: RunContext, group: Group, inbox: Inbox, chronicle: Chronicle, committer: Committer, books: Bookkeeper,
        departure: Departure, stragglers: StragglerWatch, chaos: Chaos | None, clock: Callable[[], float],
    ) -> None:  # fmt: skip
        self._context = context
        self._group = group
        self._inbox = inbox
        self._chronicle = chronicle
        self._board = chronicle.board
        self._committer = committer
        self._books = books
        self._departure = departure
        self._stragglers = stragglers
        self._chaos = chaos
        self._clock = clock

    def take(self, attempt: Attempt, item: FromAgent | AgentDied) -> None:
        """What it says of `attempt`; of those before it, what counts for the ledger."""
        if isinstance(item, AgentDied):
            if item.bundle in self._group.missing():
                first_rank = self._context.first_rank(item.bundle)
                attempt.heard_agent_loss(item.bundle, first_rank, item.why, self._clock())
            return
        self.note(item)
        for message in item.messages:
            if message["type"] == "preempted":
                grace_s = self._context.spec.recovery.preemption_grace_s
                self._inbox.preempt(notice(f"rank {message['rank']} got SIGTERM", None, grace_s, self._clock()))
            elif message["epoch"] == attempt.epoch:
                self._hear_watch(attempt, item.bundle, message)

    def note(self, item: FromAgent | AgentDied | None) -> None:
        """For the ledger: how ranks have ended counts, whoever waits for it."""
        for message in item.messages if isinstance(item, FromAgent) else ():
            self._books.heard(message)

    def _hear_watch(self, attempt: Attempt, bundle: int, message: Message) -> None:
        match message["type"]:
            case "hangs":
                attempt.still.add(bundle)
            case "moves":
                attempt.still.discard(bundle)
            case "clocks":
                pass  # for the books
            case "computed":
                self._stragglers.hear(attempt, message)
            case _:
                attempt.heard(message)
                if self._chaos:
                    self._chaos.heard(message)
                self._hear_rank(attempt, message)

    def _hear_rank(self, attempt: Attempt, message: Message) -> None:
        match message["type"]:
            case "exit":
                attempt.heard_exit(message, self._clock())
            case "error":
                attempt.heard_error(message, self._clock())
            case "done":
                attempt.heard_done(message, self._clock())
            case "staged":
                attempt.heard_staged(message, self._clock())
            case "saved":
                checkpoint = attempt.heard_saved(message)
                if checkpoint is not None:
                    self._commit(attempt, checkpoint)
            case "restored":
                self._restored(attempt, message)
            case "started":
                self._started(attempt, message)
            case "suspect":
                self._suspect(attempt, message)
            case _:
                self._chronicle.hear(message)

    def _restored(self, attempt: Attempt, message: Message) -> None:
        self._go_back_to(attempt, message["step"])
        self._chronicle.restored(message)

    def _started(self, attempt: Attempt, message: Message) -> None:
        attempt.training = True
        self._books.started()
        self._go_back_to(attempt, max(message["first_step"] - 1, 0))
        self._chronicle.started(message)

    def _go_back_to(self, attempt: Attempt, step: int) -> None:
        """Damaged commits were passed over: what was journalled after the one that was used is void."""
        if step < attempt.base_step:
            attempt.base_step = step
            self._books.went_back(step)
            self._chronicle.rewind(step)
            self._committer.newest_step = self._committer.newest()
            self._board.show(committed_step=self._committer.newest_step)
            self._chronicle.best(self._committer.best)

    def _suspect(self, attempt: Attempt, message: Message) -> None:
        """Every rank that reads the commit finds it damaged; it is marked and told once."""
        if message["commit"] in attempt.suspects:
            return
        attempt.suspects.add(message["commit"])
        self._committer.mark_suspect(message["commit"], message["message"])
        self._chronicle.tell(EventKind.CORRUPT_CHECKPOINT, message["message"], commit=message["commit"])

    def _commit(self, attempt: Attempt, checkpoint: SavedCheckpoint) -> None:
        self._books.record()
        try:
            ref = self._committer.commit(attempt.epoch, checkpoint)
        except CorruptObject as error:
            # What the writers have just stored cannot be read back: the checkpoint before stays the newest.
            self._chronicle.tell(EventKind.CORRUPT_CHECKPOINT, f"step {checkpoint.step} is not committed: {error}", step=checkpoint.step)
            return
        cost = {**checkpoint.cost, "commit_s": self._clock() - checkpoint.stored_s}
        self._departure.saved(cost)
        self._board.show(committed_step=ref.step)
        self._chronicle.committed(ref, cost)
        self._chronicle.best(self._committer.best)
