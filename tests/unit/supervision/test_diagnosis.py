"""The first failing rank is named ahead of those that fail because of it."""

from __future__ import annotations

import pytest

from orchestrator.job import EndReason
from orchestrator.supervision.diagnosis import AgentLoss, ErrorReport, RankExit, diagnose, has_cause

USER = ErrorReport(
    rank=1, time_s=10.0, end_reason="USER_ERROR", message="ValueError: bad\nmore", traceback="Traceback ...", fingerprint="f1"
)  # fmt: skip
RESET = ErrorReport(rank=0, time_s=9.0, end_reason="INTERNAL", message="RuntimeError: Connection closed by peer [127.0.0.1]:1")
ECHO = ErrorReport(rank=2, time_s=1.0, end_reason="INTERNAL", message="something else", echo=True)
KILLED = RankExit(rank=3, time_s=11.0, signal=9)
SEGFAULT = RankExit(rank=3, time_s=11.0, signal=11, log_tail="Fatal Python error")
LEFT = RankExit(rank=1, time_s=10.1, code=1)
SILENT = RankExit(rank=1, time_s=10.1, code=3, log_tail="the last line")
AGENT = AgentLoss(bundle=1, first_rank=4, time_s=12.0, message="the actor died")


@pytest.mark.parametrize(
    "reports, reason, rank",
    [
        ([USER], EndReason.USER_ERROR, 1),
        ([USER, LEFT], EndReason.USER_ERROR, 1),
        ([RESET, USER, ECHO], EndReason.USER_ERROR, 1),
        ([RESET, KILLED], EndReason.RANK_KILLED, 3),
        ([ECHO, RankExit(rank=2, time_s=1.1, code=1), KILLED], EndReason.RANK_KILLED, 3),
        ([ECHO, RESET], EndReason.INTERNAL, 2),
        ([SEGFAULT, RESET], EndReason.RANK_KILLED, 3),
        ([SILENT, ECHO], EndReason.USER_ERROR, 1),
        ([AGENT, RESET, ECHO], EndReason.NODE_LOST, 4),
        ([USER, KILLED], EndReason.USER_ERROR, 1),
        ([RankExit(rank=0, time_s=1.0, signal=9, greeted=False, note="the warm process ended")], EndReason.START_UP, 0),
        ([RankExit(rank=0, time_s=1.0, signal=9, greeted=False)], EndReason.RANK_KILLED, 0),
        ([RankExit(rank=0, time_s=1.0, code=1, greeted=False)], EndReason.START_UP, 0),
        ([RankExit(rank=0, time_s=1.0, signal=9, out_of_memory=True)], EndReason.OUT_OF_MEMORY, 0),
        ([ErrorReport(rank=0, time_s=1.0, end_reason="STORAGE", message="Connection refused")], EndReason.STORAGE, 0),
        ([ErrorReport(rank=0, time_s=1.0, end_reason="NEWER_THAN_THIS", message="x")], EndReason.INTERNAL, 0),
    ],
)
def test_reason_and_rank(reports, reason, rank):
    for order in (reports, reports[::-1]):
        verdict = diagnose(order)
        assert (verdict.reason, verdict.rank) == (reason, rank)


def test_verdict_of_an_error_has_its_first_line_its_traceback_and_its_fingerprint():
    verdict = diagnose([USER, LEFT])
    assert verdict.sentence == "rank 1: ValueError: bad"
    assert (verdict.traceback, verdict.fingerprint, verdict.external) == ("Traceback ...", "f1", False)


@pytest.mark.parametrize("number, external", [(9, True), (15, True), (2, True), (11, False), (6, False), (7, False)])
def test_a_signal_from_outside_is_no_fault_of_the_job(number, external):
    verdict = diagnose([RankExit(rank=0, time_s=1.0, signal=number, log_tail="end of the log")])
    assert verdict.external is external
    assert bool(verdict.traceback) is not external


def test_a_full_memory_counts_as_the_jobs_own():
    assert not diagnose([RankExit(rank=0, time_s=1.0, signal=9, out_of_memory=True)]).external


def test_a_rank_that_left_without_a_word_shows_the_end_of_its_log():
    assert diagnose([SILENT]).traceback == "the last line"


def test_a_workloads_error_that_speaks_of_a_connection_loses_only_against_a_cause():
    data_base = ErrorReport(rank=0, time_s=1.0, end_reason="USER_ERROR", message="OSError: connection refused")
    assert not has_cause([data_base])
    assert diagnose([data_base]).reason is EndReason.USER_ERROR
