"""Keeps the goodput ledger of a run: takes note of what happens, shows it on the board, writes it into the journal."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from orchestrator.supervision.accounting import Bucket, Life, RankClock
from orchestrator.supervision.attempt import Attempt
from orchestrator.supervision.chronicle import Chronicle
from orchestrator.supervision.context import RunContext
from orchestrator.supervision.diagnosis import Report
from orchestrator.supervision.inbox import Message
from orchestrator.supervision.ledger import MAX_MARKS, Ledger, opened

SHOW_INTERVAL_S = 1.0


class Bookkeeper:
    """Used on one thread. A record of the journal holds all of the ledger, so the newest one is what the next supervisor goes on from."""

    def __init__(self, context: RunContext, chronicle: Chronicle, clock: Callable[[], float]) -> None:
        self._chronicle = chronicle
        self._clock = clock
        self._workers = context.world_size
        before, heard_s = newest(chronicle.records())
        self._ledger = opened(
            before, run=context.run, wait=context.wait, heard_s=heard_s, now_s=clock(), workers=self._workers
        )  # of all but the newest two lives of the worker group
        self._lives: list[Life] = []
        self._is_first = before is None or before.run != context.run or not before.lives
        self._left_s: float | None = None
        self._shown_s = 0.0
        self.record()

    # what happens

    def began(self, attempt: Attempt) -> None:
        if len(self._lives) == 2:  # what its ranks have told late is there by now
            self._ledger = self._ledger.lived(self._lives.pop(0), self._lives[0].began_s)
        elif not self._lives:
            self._ledger = self._ledger.grown(Bucket.START if self._is_first else Bucket.RECOVERY, attempt.began_s, self._workers)
        life = Life(
            epoch=attempt.epoch, workers=attempt.world_size, base_step=attempt.base_step, began_s=attempt.began_s, is_first=self._is_first
        )
        self._lives.append(life)
        self._is_first, self._workers = False, attempt.world_size
        self.record()

    def heard(self, message: Message) -> None:
        """Any message of an agent, of any life of the worker group."""
        life = next((life for life in self._lives if life.epoch == message.get("epoch")), None)
        if life is None:
            return
        match message["type"]:
            case "exit" if "clock" in message:
                life.clocks[message["rank"]] = RankClock.of(message["clock"], ended_s=message["time_s"])
            case "clocks":
                told = {int(rank): RankClock.of(values) for rank, values in message["clocks"].items()}
                life.clocks |= {rank: clock for rank, clock in told.items() if not _has_ended(life.clocks.get(rank))}
            case "staged" if "spent_s" in message:
                life.saves.setdefault(message["step"], {})[message["writer"]] = message["spent_s"]
                _forget_old_saves(life)
        if self._clock() - self._shown_s >= SHOW_INTERVAL_S:
            self._show(self.ledger())

    def started(self) -> None:
        self._lives[-1].training = True
        self.record()

    def went_back(self, step: int) -> None:
        """Damaged commits were passed over."""
        self._lives[-1].base_step = step

    def failed(self, reports: Sequence[Report], hung: bool) -> None:
        """The supervisor knows it now."""
        life = self._lives[-1]
        life.known_s, life.hung = self._clock(), hung
        life.failed_s = min((report.time_s for report in reports), default=None)

    def left(self) -> None:
        """The run is over; what comes now is paperwork."""
        self._left_s = self._clock()
        if self._lives:
            self._lives[-1].left_s = self._left_s

    # what comes of it

    def ledger(self) -> Ledger:
        """As of now."""
        ledger, now_s = self._ledger, self._clock()
        if not self._lives:
            ledger = ledger.grown(Bucket.START if self._is_first else Bucket.RECOVERY, self._left_s or now_s, self._workers)
            return ledger.grown(Bucket.IDLE, now_s, self._workers)
        ends = [*(life.began_s for life in self._lives[1:]), now_s]
        for life, end_s in zip(self._lives, ends, strict=True):
            ledger = ledger.lived(life, end_s)
        return ledger

    def record(self) -> None:
        self._write(self.ledger())

    def close(self) -> Ledger:
        """The last record of the run."""
        ledger = replace(self.ledger(), closed=True, training=False)
        self._write(ledger)
        return ledger

    def _write(self, ledger: Ledger) -> None:
        # MLflow takes each step of a metric once: whole seconds of wall time, and one more at the end of a run.
        step = int(ledger.wall_s) + ledger.closed
        values = {f"goodput/{bucket.value}_s": ledger.seconds.get(bucket, 0.0) for bucket in Bucket}
        values["goodput/share"] = ledger.goodput_share
        self._chronicle.journal.append("ledger", step=step, values=values, ledger=ledger.to_dict())
        self._show(ledger)

    def _show(self, ledger: Ledger) -> None:
        self._shown_s = self._clock()
        self._chronicle.board.show(ledger=replace(ledger, marks={}).to_dict())


def newest(records: Iterable[Message]) -> tuple[Ledger | None, float]:
    """The newest ledger of a journal, and the time of its newest record of any kind."""
    found, heard_s = None, 0.0
    for record in records:
        heard_s = record["time_s"]
        if record["kind"] == "ledger":
            found = record["ledger"]
    return None if found is None else Ledger.from_dict(found), heard_s


def _forget_old_saves(life: Life) -> None:
    """Those older than as many whole ones as a ledger has marks: none of them can become a mark any more."""
    whole = sorted(step for step, by_rank in life.saves.items() if len(by_rank) == life.workers)
    if len(whole) > MAX_MARKS:
        life.saves = {step: by_rank for step, by_rank in life.saves.items() if step >= whole[-MAX_MARKS]}


def _has_ended(clock: RankClock | None) -> bool:
    return clock is not None and clock.ended_s is not None
