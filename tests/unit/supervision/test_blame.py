"""Which failure counts against a machine."""

from __future__ import annotations

import pytest

from orchestrator.events import IncidentKind
from orchestrator.job import EndReason, Remedy
from orchestrator.supervision.blame import fields_of, incident_of
from orchestrator.supervision.diagnosis import Verdict


def verdict(reason, remedy=None, **more):
    return Verdict(reason=reason, remedy=remedy or reason.remedy, rank=1, sentence="s", fingerprint="f", **more)


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (verdict(EndReason.DEVICE_FAULT), IncidentKind.DEVICE_FAULT),
        (verdict(EndReason.DEVICE_FAULT, Remedy.OTHER_NODE), IncidentKind.BROKEN_DEVICE),
        (verdict(EndReason.START_UP, Remedy.OTHER_NODE), IncidentKind.BROKEN_DEVICE),
        (verdict(EndReason.DRIFT), IncidentKind.WRONG_BITS),
        (verdict(EndReason.HANG), IncidentKind.HANG),
        (verdict(EndReason.HANG, points_at_rank=False), None),
        (verdict(EndReason.NODE_LOST), IncidentKind.LOST),
        *[(verdict(reason), None) for reason in (EndReason.USER_ERROR, EndReason.RANK_KILLED, EndReason.NETWORK, EndReason.PREEMPTED)],
    ],
)
def test_what_speaks_against_a_machine(found, expected):
    assert incident_of(found, 4) is expected


def test_of_two_replicas_that_differ_neither_is_known_to_be_wrong():
    assert incident_of(verdict(EndReason.DRIFT), 2) is None


def test_without_the_name_of_its_machine_nothing_is_counted():
    assert fields_of(IncidentKind.HANG, "", "GPU-1") == fields_of(None, "host", "") == {}
    assert fields_of(IncidentKind.HANG, "host", "") == {"incident": "HANG", "node": "host"}
