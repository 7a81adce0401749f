"""What the ranks report -> why the worker group failed: end reason, first failing rank, one sentence. Pure.

When one rank dies, the others' collectives fail because of it. So causes go ahead of echoes, and of several causes the earliest counts.
"""

from __future__ import annotations

import re
import signal
from collections.abc import Sequence
from dataclasses import dataclass

from orchestrator.job import EndReason

_ECHO = re.compile(
    r"connection (was )?(reset|closed|refused|aborted)|broken pipe|socket (is )?closed|remote process exited|peer (has )?(closed|exited)"
    r"|recvvalue failed|sendbytes failed",
    re.IGNORECASE,
)
EXTERNAL_SIGNALS = frozenset({signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP})
"""Signals that come from outside; a process gets the others for faults of its own."""


@dataclass(frozen=True, kw_only=True)
class ErrorReport:
    """A rank's own `error` message."""

    rank: int
    time_s: float
    end_reason: str
    message: str
    traceback: str = ""
    fingerprint: str = ""
    echo: bool = False


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
    """`rank` is the first that failed (of an agent: the first of its ranks). `external`: no fault of the job's own."""

    reason: EndReason
    rank: int
    sentence: str
    fingerprint: str
    traceback: str = ""
    external: bool = False


def has_cause(reports: Sequence[Report]) -> bool:
    """False as long as ranks have only said that another one is gone, and left because of it."""
    return any(map(_is_cause, _unexplained(reports)))


def diagnose(reports: Sequence[Report]) -> Verdict:
    """The verdict over what has been reported, in any order; at least one report."""
    first = min(_unexplained(reports), key=lambda report: (not _is_cause(report), report.time_s, _rank(report)))
    match first:
        case ErrorReport():
            return _of_error(first)
        case RankExit():
            return _of_exit(first)
        case AgentLoss():
            return _of_agent(first)


def _unexplained(reports: Sequence[Report]) -> list[Report]:
    """Without the exits of ranks that have said why they leave."""
    explained = {report.rank for report in reports if isinstance(report, ErrorReport)}
    return [report for report in reports if not (isinstance(report, RankExit) and _by_itself(report) and report.rank in explained)]


def _is_cause(report: Report) -> bool:
    return not (isinstance(report, ErrorReport) and (report.echo or _is_reset(report)))


def _of_error(error: ErrorReport) -> Verdict:
    reason = EndReason.__members__.get(error.end_reason, EndReason.INTERNAL)
    lines = error.message.strip().splitlines()
    sentence = f"rank {error.rank}: {lines[0] if lines else reason.label}"
    fingerprint = error.fingerprint or f"{reason.name}:{sentence}"
    return Verdict(reason=reason, rank=error.rank, sentence=sentence, fingerprint=fingerprint, traceback=error.traceback)


def _of_exit(exit_: RankExit) -> Verdict:
    if exit_.signal:
        return _of_signal(exit_)
    what = f"rank {exit_.rank} left with exit code {exit_.code}: {exit_.note or 'it did not say why'}"
    reason = EndReason.USER_ERROR if exit_.greeted else EndReason.START_UP
    return Verdict(reason=reason, rank=exit_.rank, sentence=what, fingerprint=f"exit:{exit_.code}", traceback=exit_.log_tail)


def _of_signal(exit_: RankExit) -> Verdict:
    name = _signal_name(exit_.signal)
    if exit_.out_of_memory and exit_.signal == signal.SIGKILL:
        sentence = f"rank {exit_.rank} was killed by the kernel: the machine's memory was full"
        return Verdict(reason=EndReason.OUT_OF_MEMORY, rank=exit_.rank, sentence=sentence, fingerprint="oom-kill")
    if not exit_.greeted and exit_.note:
        sentence = f"rank {exit_.rank} could not be started: {exit_.note}"
        return Verdict(reason=EndReason.START_UP, rank=exit_.rank, sentence=sentence, fingerprint="start", traceback=exit_.log_tail)
    sentence = f"rank {exit_.rank} was killed by {name}" + (f": {exit_.note}" if exit_.note else "")
    external = exit_.signal in EXTERNAL_SIGNALS
    tail = "" if external else exit_.log_tail
    return Verdict(
        reason=EndReason.RANK_KILLED, rank=exit_.rank, sentence=sentence, fingerprint=f"signal:{name}", traceback=tail, external=external
    )


def _of_agent(loss: AgentLoss) -> Verdict:
    sentence = f"the agent of node {loss.bundle} (ranks from {loss.first_rank}) was lost: {loss.message}"
    return Verdict(reason=EndReason.NODE_LOST, rank=loss.first_rank, sentence=sentence, fingerprint="agent", external=True)


def _is_reset(error: ErrorReport) -> bool:
    """The workload's own errors are never taken for echoes by their words, storage errors neither: those have classes of their own."""
    return error.end_reason in ("USER_ERROR", "INTERNAL", "RANK_KILLED") and _ECHO.search(error.message) is not None


def _by_itself(exit_: RankExit) -> bool:
    return exit_.signal == 0 or exit_.signal not in EXTERNAL_SIGNALS


def _rank(report: Report) -> int:
    return report.first_rank if isinstance(report, AgentLoss) else report.rank


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
