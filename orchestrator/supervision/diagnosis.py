"""What the ranks report -> why the worker group failed: end reason, first failing rank, one sentence, what may help. Pure.

When one rank dies, the others' collectives fail because of it. So causes go ahead of echoes, and of several causes the earliest counts.
What a rank says itself counts before its log, unless it says only that something failed.
"""

from __future__ import annotations

import re
import signal
from collections.abc import Sequence
from dataclasses import dataclass

from orchestrator.evidence import Evidence, normal_form, of_exception, of_log
from orchestrator.job import EndReason, Remedy

_CONNECTION = re.compile(r"connection (was )?(reset|closed|refused|aborted)|broken pipe|socket (is )?closed", re.IGNORECASE)
_PREEMPTED = re.compile(r"preempt", re.IGNORECASE)
EXTERNAL_SIGNALS = frozenset({signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP})
"""Signals that come from outside; a process gets the others for faults of its own."""


@dataclass(frozen=True, kw_only=True)
class ErrorReport:
    """A rank's own `error` message."""

    rank: int
    time_s: float
    end_reason: str
    message: str
    remedy: str = ""
    """Name of a Remedy; empty: that of the end reason."""
    traceback: str = ""
    fingerprint: str = ""
    echo: bool = False
    window: tuple[int, int] | None = None
    """Global positions of the samples that it came with."""


@dataclass(frozen=True, kw_only=True)
class RankExit:
    """How a rank's process ended; `signal` is 0 if it left by itself."""

    rank: int
    time_s: float
    code: int = 0
    signal: int = 0
    greeted: bool = True
    """It had said hello: the program was running."""
    out_of_memory: bool = False
    """The kernel killed a process of this container for memory meanwhile."""
    note: str = ""
    """What else is known: the warm process ended, or refused."""
    log_tail: str = ""


@dataclass(frozen=True, kw_only=True)
class AgentLoss:
    """A node's agent died, and its ranks with it."""

    bundle: int
    first_rank: int
    time_s: float
    message: str


Report = ErrorReport | RankExit | AgentLoss


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """`rank` is the first that failed (of an agent: the first of its ranks)."""

    reason: EndReason
    remedy: Remedy
    rank: int
    sentence: str
    fingerprint: str
    traceback: str = ""
    window: tuple[int, int] | None = None
    """Global positions of the samples that it came with."""
    points_at_rank: bool = True
    """False: `rank` only stands for all, or it did not act by itself."""


def has_cause(reports: Sequence[Report]) -> bool:
    """False as long as ranks have only said that another one is gone, and left because of it."""
    return any(_weight(report) == 0 for report in _unexplained(reports))


def diagnose(reports: Sequence[Report]) -> Verdict:
    """The verdict over what has been reported, in any order; at least one report."""
    first = min(_unexplained(reports), key=lambda report: (_weight(report), report.time_s, _rank(report)))
    match first:
        case ErrorReport():
            return _of_error(first, _log_of(first.rank, reports))
        case RankExit():
            return _of_exit(first)
        case AgentLoss():
            return _of_agent(first)


def not_started(why: str) -> Verdict:
    """No rank could be started, or said a word."""
    return _verdict(EndReason.START_UP, 0, why, f"start {normal_form(why)}", of_log(why))


def _unexplained(reports: Sequence[Report]) -> list[Report]:
    """Without the exits of ranks that have said why they leave."""
    explained = {report.rank for report in reports if isinstance(report, ErrorReport)}
    return [report for report in reports if not (isinstance(report, RankExit) and _by_itself(report) and report.rank in explained)]


def _weight(report: Report) -> int:
    """0: a cause; 1: a workload's own error that speaks of a connection, which another rank may have closed; 2: an echo."""
    match report:
        case ErrorReport():
            return 2 if report.echo else int(_speaks_of_connection(report))
        case RankExit():
            found = _evidence_of(report)
            return 2 * (found is not None and found.echo)
        case AgentLoss():
            return 0


def _speaks_of_connection(error: ErrorReport) -> bool:
    return error.end_reason == EndReason.USER_ERROR.name and _CONNECTION.search(error.message) is not None


def _of_error(error: ErrorReport, log: str) -> Verdict:
    reason = EndReason.__members__.get(error.end_reason, EndReason.INTERNAL)
    remedy = Remedy[error.remedy] if error.remedy in Remedy.__members__ else reason.remedy
    lines = error.message.strip().splitlines()
    sentence = f"rank {error.rank}: {lines[0] if lines else reason.label}"
    fingerprint = error.fingerprint or f"{reason.name}:{normal_form(error.message)}"
    said = of_exception([], error.message)
    vague = error.echo or reason is EndReason.INTERNAL or (said is not None and said.vague)
    known = of_log(log) if vague else None
    if known is not None and not known.vague:
        return _verdict(known.reason, error.rank, sentence, fingerprint, known, error.traceback)
    return Verdict(
        reason=reason, remedy=remedy, rank=error.rank, sentence=sentence, fingerprint=fingerprint, traceback=error.traceback,
        window=error.window,
    )  # fmt: skip


def _of_exit(exit_: RankExit) -> Verdict:
    if exit_.signal:
        return _of_signal(exit_)
    what = f"rank {exit_.rank} left with exit code {exit_.code}: {exit_.note or 'it did not say why'}"
    reason = EndReason.USER_ERROR if exit_.greeted else EndReason.START_UP
    return _verdict(reason, exit_.rank, what, f"exit:{exit_.code}", _evidence_of(exit_), _own_traceback(exit_.log_tail))


def _of_signal(exit_: RankExit) -> Verdict:
    name = _signal_name(exit_.signal)
    if exit_.out_of_memory and exit_.signal == signal.SIGKILL:
        sentence = f"rank {exit_.rank} was killed by the kernel: the machine's memory was full"
        return _verdict(EndReason.HOST_OUT_OF_MEMORY, exit_.rank, sentence, "oom-kill")
    if not exit_.greeted and exit_.note:
        sentence = f"rank {exit_.rank} could not be started: {exit_.note}"
        return _verdict(EndReason.START_UP, exit_.rank, sentence, "start", traceback=exit_.log_tail)
    sentence = f"rank {exit_.rank} was killed by {name}" + (f": {exit_.note}" if exit_.note else "")
    if exit_.signal in EXTERNAL_SIGNALS:
        outside = EndReason.RANK_KILLED
        return Verdict(reason=outside, remedy=Remedy.RESTART, rank=exit_.rank, sentence=sentence, fingerprint=f"signal:{name}")
    return _verdict(EndReason.RANK_KILLED, exit_.rank, sentence, f"signal:{name}", _evidence_of(exit_), exit_.log_tail)


def _of_agent(loss: AgentLoss) -> Verdict:
    sentence = f"the agent of node {loss.bundle} (ranks from {loss.first_rank}) was lost: {loss.message}"
    reason = EndReason.PREEMPTED if _PREEMPTED.search(loss.message) else EndReason.NODE_LOST
    return _verdict(reason, loss.first_rank, sentence, "agent", of_log(loss.message))


def _verdict(
    reason: EndReason, rank: int, sentence: str, fingerprint: str, evidence: Evidence | None = None, traceback: str = ""
) -> Verdict:  # fmt: skip
    """What is known by evidence goes ahead of the general reason."""
    if evidence is None:
        return Verdict(
            reason=reason, remedy=reason.remedy, rank=rank, sentence=sentence, fingerprint=fingerprint, traceback=traceback
        )  # fmt: skip
    return Verdict(
        reason=evidence.reason, remedy=evidence.remedy, rank=rank, sentence=f"{sentence} ({evidence.reason.label})",
        fingerprint=f"{evidence.reason.name} {evidence.name}", traceback=traceback,
    )  # fmt: skip


def _evidence_of(exit_: RankExit) -> Evidence | None:
    """What the log says of a rank that ran and was not ended from outside."""
    return of_log(exit_.log_tail) if exit_.greeted and exit_.signal not in EXTERNAL_SIGNALS else None


def _log_of(rank: int, reports: Sequence[Report]) -> str:
    return "\n".join(report.log_tail for report in reports if isinstance(report, RankExit) and report.rank == rank)


def _own_traceback(log_tail: str) -> str:
    """From the last traceback of the log on; all of the log if it has none."""
    start = log_tail.rfind("Traceback (most recent call last):")
    return log_tail[max(start, 0) :]


def _by_itself(exit_: RankExit) -> bool:
    return exit_.signal == 0 or exit_.signal not in EXTERNAL_SIGNALS


def _rank(report: Report) -> int:
    return report.first_rank if isinstance(report, AgentLoss) else report.rank


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
