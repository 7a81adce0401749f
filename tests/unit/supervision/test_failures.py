"""Restart or give up, as a table."""

from __future__ import annotations

import pytest

from orchestrator.job import EndReason
from orchestrator.spec import RecoverySpec
from orchestrator.supervision.failures import Action, Fault, decide

SPEC = RecoverySpec(max_restarts=100, max_restarts_without_progress=3, backoff_s=1.0)


def fault(reason=EndReason.INTERNAL, fingerprint="a", committed=0, external=False):
    return Fault(reason=reason, fingerprint=fingerprint, committed_step=committed, external=external)


KILL = fault(EndReason.RANK_KILLED, "signal:SIGKILL", external=True)
USER = fault(EndReason.USER_ERROR, "bug")


@pytest.mark.parametrize(
    "faults, restarts, action, delay_s",
    [
        ([fault()], 0, Action.RESTART, 0.0),
        ([fault()] * 2, 1, Action.RESTART, 1.0),
        ([fault()] * 3, 2, Action.RESTART, 2.0),
        ([fault()] * 4, 3, Action.FAIL, 0.0),
        ([fault(), fault(committed=50), fault(committed=100), fault(committed=150)], 3, Action.RESTART, 0.0),
        ([fault(), fault(fingerprint="b")] * 3 + [fault()], 6, Action.FAIL, 0.0),
        ([USER], 0, Action.RESTART, 0.0),
        ([USER] * 2, 1, Action.FAIL, 0.0),
        ([USER, fault(EndReason.USER_ERROR, "bug", committed=50)], 1, Action.RESTART, 0.0),
        ([KILL], 0, Action.RESTART, 0.0),
        ([KILL] * 50, 49, Action.RESTART, 60.0),
        ([KILL] * 5, 100, Action.FAIL, 0.0),
        ([fault(EndReason.NODE_LOST, external=True)] * 9, 8, Action.RESTART, 60.0),
        ([fault(EndReason.OUT_OF_MEMORY)] * 4, 3, Action.FAIL, 0.0),
        ([fault(EndReason.START_UP)] * 4, 3, Action.FAIL, 0.0),
        ([fault(EndReason.CONFIGURATION)], 0, Action.FAIL, 0.0),
        ([fault(EndReason.DATA)], 0, Action.FAIL, 0.0),
        ([fault(EndReason.STORAGE)], 0, Action.FAIL, 0.0),
        ([fault(EndReason.CHECKPOINT)], 0, Action.FAIL, 0.0),
    ],
)
def test_decision(faults, restarts, action, delay_s):
    decision = decide(SPEC, faults, restarts)
    assert (decision.action, decision.delay_s) == (action, delay_s)
    assert decision.why


def test_no_restart_where_none_is_allowed():
    assert decide(RecoverySpec(max_restarts_without_progress=0), [USER], 0).action is Action.FAIL
    assert decide(RecoverySpec(max_restarts=0), [KILL], 0).action is Action.FAIL


def test_the_backoff_of_a_thousand_kills_is_a_minute():
    assert decide(RecoverySpec(max_restarts=10_000), [KILL] * 5_000, 4_999).delay_s == 60.0


def test_a_fault_survives_the_journal():
    assert Fault.from_dict(KILL.to_dict()) == KILL
