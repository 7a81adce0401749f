"""The first failing rank is named ahead of those that fail because of it."""

from __future__ import annotations

import dataclasses

import pytest

from orchestrator.job import EndReason, Remedy
from orchestrator.supervision.diagnosis import AgentLoss, ErrorReport, RankExit, diagnose, has_cause, not_started

USER = ErrorReport(
    rank=1, time_s=10.0, end_reason="USER_ERROR", message="ValueError: bad\nmore", traceback="Traceback ...", fingerprint="f1"
)  # fmt: skip
RESET = ErrorReport(
    rank=0, time_s=9.0, end_reason="NETWORK", message="RuntimeError: Connection closed by peer [127.0.0.1]:1", echo=True
)  # fmt: skip
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
        ([RankExit(rank=0, time_s=1.0, signal=9, out_of_memory=True)], EndReason.HOST_OUT_OF_MEMORY, 0),
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
    assert (verdict.traceback, verdict.fingerprint, verdict.remedy) == ("Traceback ...", "f1", Remedy.RETRY_ONCE)


@pytest.mark.parametrize("number, external", [(9, True), (15, True), (2, True), (11, False), (6, False), (7, False)])
def test_a_signal_from_outside_is_no_fault_of_the_job(number, external):
    verdict = diagnose([RankExit(rank=0, time_s=1.0, signal=number, log_tail="end of the log")])
    assert (verdict.remedy is Remedy.RESTART) is external
    assert bool(verdict.traceback) is not external


def test_a_full_memory_counts_as_the_jobs_own():
    assert diagnose([RankExit(rank=0, time_s=1.0, signal=9, out_of_memory=True)]).remedy is Remedy.SMALLER_MICRO_BATCH


def test_a_rank_that_left_without_a_word_shows_the_end_of_its_log():
    assert diagnose([SILENT]).traceback == "the last line"


def test_a_workloads_error_that_speaks_of_a_connection_loses_only_against_a_cause():
    data_base = ErrorReport(rank=0, time_s=1.0, end_reason="USER_ERROR", message="OSError: connection refused")
    assert not has_cause([data_base])
    assert diagnose([data_base]).reason is EndReason.USER_ERROR


def test_a_cause_goes_ahead_of_a_connections_end_and_that_ahead_of_echoes():
    data_base = ErrorReport(rank=0, time_s=1.0, end_reason="USER_ERROR", message="OSError: connection refused")
    assert diagnose([ECHO, data_base]).rank == 0
    assert diagnose([ECHO, data_base, KILLED]).rank == 3


def test_a_rank_that_says_only_that_something_failed_is_explained_by_its_log():
    vague = ErrorReport(rank=1, time_s=1.0, end_reason="INTERNAL", message="RuntimeError: worker failed", traceback="where")
    log = RankExit(rank=1, time_s=1.1, code=1, log_tail="NVRM: Xid (PCI:0000:9a:00): 79, GPU has fallen off the bus.")
    verdict = diagnose([vague, log])
    assert (verdict.reason, verdict.remedy, verdict.traceback) == (EndReason.DEVICE_FAULT, Remedy.OTHER_NODE, "where")
    assert verdict.sentence == "rank 1: RuntimeError: worker failed (device failed)"


def test_an_error_with_a_cause_of_its_own_is_not_explained_by_what_was_logged_before():
    log = RankExit(rank=1, time_s=10.2, code=1, log_tail="CUDA out of memory. Tried to allocate 1 GiB: trying a smaller one")
    assert diagnose([USER, log]).reason is EndReason.USER_ERROR


def test_a_process_that_aborts_because_another_one_left_is_an_echo():
    log = "terminate called\n  what():  NCCL error: remote process exited or there was a network error"
    abort = RankExit(rank=0, time_s=1.0, signal=6, log_tail=log)
    assert not has_cause([abort])
    assert diagnose([abort, KILLED]).rank == 3


def test_only_the_last_traceback_of_a_log_is_shown():
    log = "Traceback (most recent call last):\n  an old one\nstep 7\nTraceback (most recent call last):\nKeyError: 'x'\n"
    verdict = diagnose([RankExit(rank=0, time_s=1.0, code=1, log_tail=log)])
    assert verdict.traceback == "Traceback (most recent call last):\nKeyError: 'x'\n"


@pytest.mark.parametrize(
    "why, remedy",
    [("ranks [1] did not say a word in time", Remedy.RETRY), ("no CUDA GPUs are available", Remedy.OTHER_NODE)],
)
def test_what_does_not_start_is_explained_by_its_words(why, remedy):
    verdict = not_started(why)
    assert verdict.remedy is remedy
    assert why in verdict.sentence


def test_a_remedy_that_a_newer_rank_knows_is_that_of_the_reason():
    report = ErrorReport(rank=0, time_s=1.0, end_reason="STORAGE", message="x", remedy="PRAYER")
    assert diagnose([report]).remedy is Remedy.NONE
    assert diagnose([dataclasses.replace(report, remedy="WAIT")]).remedy is Remedy.WAIT
