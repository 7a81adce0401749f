"""What counts against a run's budgets, from the journal of all its lives."""

from __future__ import annotations

from orchestrator.job import EndReason, Remedy
from orchestrator.supervision.chronicle import past
from orchestrator.supervision.failures import Fault

FAULT = Fault(
    reason=EndReason.RANK_KILLED, remedy=Remedy.RESTART, fingerprint="f", step=12, committed_step=10, micro_batch_size=4
)


def event(run, kind, **fields):
    return {"kind": "event", "run": run, "event": kind, **fields}


def restarted(run):
    return event(run, "restarted", fault=FAULT.to_dict())


def ended(run, reason):
    return event(run, "ended", reason=reason.name)


def counts(records, run):
    found = past([{"kind": "metrics", "step": 1}, *records], run)
    return len(found.faults), found.restarts, found.preemptions


def test_restarts_and_lost_supervisors_of_a_run_count():
    records = [event(1, "started"), restarted(1), event(1, "supervisor_lost"), restarted(1)]
    assert counts(records, 1) == (2, 3, 0)
    assert past(records, 1).faults == [FAULT, FAULT]
    assert counts([], 1) == (0, 0, 0)


def test_a_run_after_a_preemption_has_what_the_one_before_had_against_it():
    records = [restarted(1), ended(1, EndReason.PREEMPTED)]
    assert counts(records, 2) == (1, 1, 1)
    records += [restarted(2), ended(2, EndReason.PREEMPTED), event(3, "supervisor_lost")]
    assert counts(records, 3) == (2, 3, 2)


def test_a_run_with_another_number_of_workers_has_what_the_one_before_had_against_it_and_no_preemption_more():
    records = [restarted(1), ended(1, EndReason.PREEMPTED), restarted(2), ended(2, EndReason.RESIZED)]
    assert counts(records, 3) == (2, 2, 1)


def test_a_run_that_the_user_resumes_has_nothing_against_it():
    records = [restarted(1), ended(1, EndReason.PREEMPTED), restarted(2), ended(2, EndReason.CANCELLED)]
    assert counts(records, 3) == (0, 0, 0)
    assert counts([*records, restarted(3)], 3) == (1, 1, 0)
    assert counts([restarted(1)], 2) == (0, 0, 0)  # its end was never written


def test_a_smaller_micro_batch_lasts_over_preemptions_until_the_user_resumes():
    records = [event(1, "restarted", fault=FAULT.to_dict(), micro_batch_size=2), restarted(1), ended(1, EndReason.PREEMPTED)]
    assert past(records, 2).micro_batch_size == past(records, 1).micro_batch_size == 2
    assert past([*records, ended(2, EndReason.CANCELLED)], 3).micro_batch_size == 0


def test_samples_that_were_passed_over_stay_so_whatever_ended_since():
    records = [event(1, "restarted", fault=FAULT.to_dict(), skipped=[48, 72]), ended(1, EndReason.CANCELLED)]
    records += [event(2, "restarted", fault=FAULT.to_dict(), skipped=[96, 120]), ended(2, EndReason.PREEMPTED)]
    assert past(records, 1).skipped == past(records, 3).skipped == [(48, 72), (96, 120)]
