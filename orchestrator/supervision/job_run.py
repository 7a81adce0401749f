"""The life of one run of a job, top to bottom, on one thread. No Ray: it speaks to its worker group through `Group`.

    begin an epoch -> start the ranks -> hear them -> done: end
                                            |
                                            v
                   cause and rank -> kill the rest -> restart or give up
"""

from __future__ import annotations

import logging
import time
import traceback
from collections.abc import Callable, Sequence
from typing import Any

from orchestrator.checkpoints.restore_attempts import RestoreAttempts
from orchestrator.errors import CheckpointError, ClusterError, FencedError, OrchestratorError, StorageError
from orchestrator.events import EventKind
from orchestrator.job import EndReason, JobResult, JobState, Remedy
from orchestrator.runtime.link import Order
from orchestrator.storage import ObjectStore
from orchestrator.supervision.attempt import Attempt
from orchestrator.supervision.blame import fields_of, incident_of
from orchestrator.supervision.bookkeeper import Bookkeeper
from orchestrator.supervision.chaos import Chaos
from orchestrator.supervision.chronicle import Chronicle, past
from orchestrator.supervision.committer import Committer
from orchestrator.supervision.context import RunContext
from orchestrator.supervision.departure import Departure
from orchestrator.supervision.diagnosis import Verdict, diagnose, not_started
from orchestrator.supervision.failures import Action, Fault, decide
from orchestrator.supervision.inbox import Inbox
from orchestrator.supervision.investigation import investigate
from orchestrator.supervision.listener import Listener
from orchestrator.supervision.place import PlaceLost
from orchestrator.supervision.settlement import Settlement
from orchestrator.supervision.silence import SILENCE_LIMIT_S, Silence
from orchestrator.supervision.straggler_watch import StragglerWatch
from orchestrator.supervision.worker_group import Group

log = logging.getLogger("orchestrator.supervisor")

_FROM_OUTSIDE = (EndReason.CANCELLED, EndReason.TIME_LIMIT, EndReason.PREEMPTED, EndReason.RESIZED)


class JobRun:
    """`run()` returns how the run ended; what then has to be written down is `ending.close_books`'s to do."""

    def __init__(
        self, context: RunContext, store: ObjectStore, group: Group, inbox: Inbox, chronicle: Chronicle, committer: Committer,
        later_life: bool = False, clock: Callable[[], float] = time.time, chaos: Chaos | None = None,
    ) -> None:  # fmt: skip
        """`later_life`: a supervisor of this run has lived before."""
        self._chaos = chaos
        self._context = context
        self._store = store
        self._group = group
        self._inbox = inbox
        self._chronicle = chronicle
        self._board = chronicle.board
        self._committer = committer
        self._clock = clock
        self._past = past(chronicle.records(), context.run)
        self.books = Bookkeeper(context, chronicle, clock)
        self._asked, self._faults, self._restarts = context.spec, self._past.faults, self._past.restarts
        if self._past.micro_batch_size:
            self._context = context.with_micro_batch_size(self._past.micro_batch_size)
        self._context = self._context.without(*self._past.skipped)
        self._departure = Departure(context, inbox, chronicle, clock)
        stragglers = StragglerWatch(context, inbox, chronicle, clock, self._past.drained)
        self._listener = Listener(
            context, group, inbox, chronicle, committer, self.books, self._departure, stragglers, chaos, clock
        )  # fmt: skip
        self._settlement = Settlement(context, group, inbox, self._board, self._departure, self._listener, clock)
        if later_life:
            self._restarts += 1
            chronicle.tell(EventKind.SUPERVISOR_LOST, "the supervisor was started again; the job goes on from its newest checkpoint")

    def run(self) -> JobResult:
        result = self._end_of_life()
        if result.end_reason in _FROM_OUTSIDE:
            self._excuse_commit()
        for item in self._inbox.rest():
            self._listener.note(item)
        self.books.left()
        return result

    def _end_of_life(self) -> JobResult:
        try:
            return self._live()
        except FencedError as error:
            return self._result(EndReason.FENCED, str(error))
        except PlaceLost as error:
            return self._preempted(str(error))
        except StorageError as error:
            return self._result(EndReason.STORAGE, str(error))
        except CheckpointError as error:
            return self._result(EndReason.CHECKPOINT, str(error))
        except OrchestratorError as error:
            return self._result(EndReason.INTERNAL, str(error))
        except Exception:  # noqa: BLE001 - the last frame of the thread: a bug here must end the job with its traceback, not hang it
            return self._result(EndReason.INTERNAL, f"error in the supervisor\n{traceback.format_exc()}")

    def _live(self) -> JobResult:
        while True:
            try:
                attempt = self._begin()
                end = self._hear(attempt)
                verdict = None if end else self._verdict(attempt)
            except PlaceLost:
                raise
            except ClusterError as error:
                end, verdict = None, not_started(str(error))
            end = end or self._stopped_at_once()
            if end is None and verdict is not None:
                end = self._recover(verdict)
            if end is not None:
                return end

    # begin

    def _begin(self) -> Attempt:
        epoch = self._committer.begin_epoch(f"{self._context.job_id}:{self._context.run}")
        base = epoch.commits[0].step if epoch.commits else 0
        self._chronicle.best(self._committer.best)
        commits = [ref.key for ref in epoch.commits]
        attempt = Attempt(epoch.number, self._context.world_size, base, self._clock(), commits)
        self._attempt = attempt
        self.books.began(attempt)
        if epoch.number > 1:
            self._chronicle.rewind(base)
        workers = f"starting {attempt.world_size} worker{'s' if attempt.world_size > 1 else ''}"
        self._chronicle.workers(attempt.world_size, self._context.spec.resources)
        self._board.show(phase=workers, epoch=epoch.number, committed_step=self._committer.newest_step)
        self._board.show(restarts=self._restarts, preemptions=self._past.preemptions)
        tasks = self._context.rank_tasks(epoch.number, commits)
        tasks = self._chaos.hand_out(tasks) if self._chaos else tasks
        self._group.start(tasks, self._context.secrets, lambda: self._inbox.stops)
        return attempt

    # hear

    def _hear(self, attempt: Attempt) -> JobResult | None:
        """How it ended; None if it failed, and `attempt.reports` say why."""
        ordered, silence = False, Silence(len(self._context.ranks_per_bundle))
        while True:
            if self._inbox.stops_now():
                return self._left("stopped at once")
            if (why := self._departure.over(attempt)) is not None:
                self._group.kill_ranks()
                self._settlement.settle(attempt)
                return self._left(why)
            if self._inbox.stops and not ordered:
                if not attempt.greeted:
                    return self._left("stopped before it began")
                ordered = True
                self._group.order(Order.DRAIN)
                self._tell_why_it_leaves()
                self._board.move(JobState.DRAINING, "saving, then stopping")
            now = self._clock()
            if attempt.completed(now):
                return self._completed(attempt)
            self._lose_silent(attempt, silence.look(self._inbox.arrivals, now))
            if len(attempt.still) == len(self._context.ranks_per_bundle):
                attempt.hang = investigate(
                    self._group, self._committer, self._chronicle, epoch=attempt.epoch, time_s=now,
                    hang_timeout_s=self._context.spec.recovery.hang_timeout_s,
                )  # fmt: skip
            if attempt.hang is not None or attempt.failed(now):
                return None
            item = self._inbox.get(min(attempt.patience_s(), self._departure.patience_s()))
            if item is not None:
                self._listener.take(attempt, item)

    def _lose_silent(self, attempt: Attempt, bundles: Sequence[int]) -> None:
        """Their agents live and do not act."""
        for bundle in bundles:
            self._group.discard(bundle)
            why = f"it lives, and has said nothing for {SILENCE_LIMIT_S:.0f} s"
            attempt.heard_agent_loss(bundle, self._context.first_rank(bundle), why, self._clock())

    def _tell_why_it_leaves(self) -> None:
        """What the user has ordered is known, and a preemption is told with its figures."""
        if self._inbox.resizing and not self._inbox.stop_mode and self._inbox.preemption is None:
            self._chronicle.tell(EventKind.RESIZED, f"{self._inbox.resizing}: it saves and starts again with them")

    # fail

    def _verdict(self, attempt: Attempt) -> Verdict:
        if attempt.hang is not None:
            return attempt.hang
        if attempt.reports:
            return diagnose(attempt.reports)
        silent = sorted(set(range(attempt.world_size)) - attempt.greeted)
        return not_started(f"ranks {silent} did not say a word in time")

    def _recover(self, verdict: Verdict) -> JobResult | None:
        """Kill what is left. How the run ended, or None to begin again."""
        self.books.failed(self._attempt.reports, hung=self._attempt.hang is not None)
        kinds = {EndReason.NODE_LOST: EventKind.AGENT_LOST, EndReason.PREEMPTED: EventKind.AGENT_LOST, EndReason.HANG: EventKind.HANG}
        kind = kinds.get(verdict.reason, EventKind.RANK_LOST)
        self._board.move(JobState.RECOVERING, f"recovering: {verdict.sentence}")
        hosts, gpus = self._attempt.hosts, self._attempt.gpus
        counts = fields_of(incident_of(verdict, self._attempt.world_size), hosts.get(verdict.rank, ""), gpus.get(verdict.rank, ""))
        said = {"rank": verdict.rank, "reason": verdict.reason.name, "fingerprint": verdict.fingerprint, **counts}
        self._chronicle.tell(kind, verdict.sentence, **said)
        self._group.kill_ranks()
        self._settlement.settle(self._attempt)
        if verdict.remedy is Remedy.RESTART:
            self._excuse_commit()
        if self._inbox.stops:
            return self._left(f"stopped; before it could save, {verdict.sentence}")
        committed = self._committer.newest_step
        fault = Fault(
            reason=verdict.reason, remedy=verdict.remedy, fingerprint=verdict.fingerprint, step=self._board.progress.step,
            committed_step=-1 if committed is None else committed, micro_batch_size=self._context.spec.training.micro_batch_size,
            window=verdict.window,
        )  # fmt: skip
        self._faults.append(fault)
        decision = decide(self._asked, self._faults, self._restarts)
        if decision.action is Action.FAIL:
            return self._result(verdict.reason, f"{verdict.sentence} ({decision.why})\n{verdict.traceback}".strip())
        if self._pause(decision.delay_s):
            return self._left("stopped while it waited to restart")
        self._restarts += 1
        changes: dict[str, Any] = {}
        if decision.action is Action.HALVE_MICRO_BATCH:
            self._context = self._context.with_micro_batch_size(decision.micro_batch_size)
            changes["micro_batch_size"] = decision.micro_batch_size
        if decision.skipped is not None:
            self._context = self._context.without(decision.skipped)
            changes["skipped"] = decision.skipped
        if decision.blames_node:
            self._chronicle.tell(EventKind.WARNING, f"the machine of rank {verdict.rank} looks broken: drain its node", rank=verdict.rank)
        self._chronicle.tell(EventKind.RESTARTED, f"{decision.why} after: {verdict.sentence}", fault=fault.to_dict(), **changes)
        return None

    def _excuse_commit(self) -> None:
        """The attempt was ended from outside: if it made no step, that says nothing of the commit that it was to go on from."""
        key = self._attempt.restores()
        if key is None:
            return
        if not self._attempt.training:
            self._group.kill_ranks()  # one that lives would note its attempt when the note is gone
        try:
            RestoreAttempts(self._store, self._context.keys, key).forget()
        except StorageError as error:
            log.warning("an attempt that was ended from outside counts against '%s': %s", key, error)

    def _pause(self, delay_s: float) -> bool:
        """Wait; True if told to stop meanwhile. What dead ranks have said is dropped."""
        limit = self._clock() + delay_s
        while not self._inbox.stops and (left := limit - self._clock()) > 0:
            self._board.show(phase=f"restarts in {left:.0f} s")
            self._listener.note(self._inbox.get(min(left, 1.0)))
        return self._inbox.stops

    # end

    def _completed(self, attempt: Attempt) -> JobResult:
        step, stopped = attempt.done[min(attempt.done)]
        if stopped and step < self._context.spec.training.max_steps:
            return self._left(f"stopped after step {step}", step)
        return self._result(EndReason.COMPLETED, f"trained {step} steps" + (f"; {attempt.why}" if attempt.why else ""), step)

    def _stopped_at_once(self) -> JobResult | None:
        return self._left("stopped at once") if self._inbox.stops_now() else None

    def _left(self, message: str, step: int | None = None) -> JobResult:
        """Because the user stopped it or, if not, because it was preempted or, if not, because it is to be resized."""
        preemption = self._inbox.preemption
        if preemption is not None:
            self._group.stop_uploads()
        if self._inbox.stop_mode:
            limited = self._inbox.stop_mode == "limit"
            return self._result(EndReason.TIME_LIMIT if limited else EndReason.CANCELLED, message, step)
        if preemption is not None:
            return self._preempted(f"{preemption.why}; {message}", step)
        return self._result(EndReason.RESIZED, f"{self._inbox.resizing}; {message}; {self._back_to_the_queue()}", step)

    def _preempted(self, why: str, step: int | None = None) -> JobResult:
        self._board.show(preemptions=self._past.preemptions + 1)
        return self._result(EndReason.PREEMPTED, f"{why}; {self._back_to_the_queue()}", step)

    def _back_to_the_queue(self) -> str:
        committed = self._committer.newest_step
        return "back to the queue, " + ("begins anew" if committed is None else f"goes on from step {committed}")

    def _result(self, reason: EndReason, message: str, step: int | None = None) -> JobResult:
        progress = self._board.progress
        committed = self._committer.newest_step
        return JobResult(
            end_reason=reason, message=message, step=progress.step if step is None else step, committed_step=committed,
            metrics=self._chronicle.figures(), resumable=committed is not None and reason is not EndReason.COMPLETED,
        )  # fmt: skip
