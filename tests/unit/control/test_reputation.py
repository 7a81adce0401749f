"""What incidents of all jobs mean for a machine."""

from __future__ import annotations

import pytest

from orchestrator.control.planning.reputation import HALF_LIFE_S, MEMORY_S, Incident, judged, scores, standing
from orchestrator.control.scheduler import ClusterView, Standing
from orchestrator.control.scheduler.model import Node
from orchestrator.events import IncidentKind

NOW = 1e9


def incident(kind=IncidentKind.HANG, job="a", node="n1", age_s=0.0, gpu=""):
    return Incident(job_id=job, kind=kind, node=node, gpu=gpu, time_s=NOW - age_s)


def test_an_incident_weighs_half_after_each_half_life():
    kind = IncidentKind.BROKEN_DEVICE
    assert scores([incident(kind)], NOW) == {"n1": 1.0}
    assert scores([incident(kind, age_s=HALF_LIFE_S)], NOW) == {"n1": 0.5}
    assert scores([incident(kind, age_s=MEMORY_S)], NOW)["n1"] < 0.001
    assert scores([incident(kind, age_s=-60.0)], NOW) == {"n1": 1.0}, "a clock that is ahead adds nothing"


def test_jobs_and_kinds_add_up_and_a_job_counts_once_for_the_same_kind():
    hangs = [incident(age_s=number) for number in range(50)]
    assert scores(hangs, NOW) == {"n1": 0.5}
    more = [incident(job="b"), incident(IncidentKind.STRAGGLER), incident(job="a", node="n2")]
    assert scores([*hangs, *more], NOW) == {"n1": 1.5, "n2": 0.5}


def test_a_gpu_has_a_score_of_its_own():
    found = [incident(gpu="GPU-1"), incident(IncidentKind.DEVICE_FAULT, gpu="GPU-2"), incident(IncidentKind.LOST)]
    assert scores(found, NOW, lambda one: one.gpu) == {"GPU-1": 0.5, "GPU-2": 0.5}


@pytest.mark.parametrize(
    ("kinds", "age_s", "expected"),
    [
        ([], 0, Standing.GOOD),
        (["HANG"], 0, Standing.SUSPECT),
        (["HANG"], 2 * HALF_LIFE_S, Standing.GOOD),
        (["WRONG_BITS"], 0, Standing.SUSPECT),
        (["WRONG_BITS", "DEVICE_FAULT"], 0, Standing.EXCLUDED),
        (["WRONG_BITS", "DEVICE_FAULT"], HALF_LIFE_S, Standing.SUSPECT),
    ],
)
def test_how_a_machine_stands(kinds, age_s, expected):
    found = [incident(IncidentKind[kind], age_s=age_s) for kind in kinds]
    assert standing(scores(found, NOW).get("n1", 0.0)) is expected


def test_a_machine_keeps_its_standing_when_ray_gives_it_another_id():
    found = {"n1": 2.0}
    for name in ("before", "after"):
        view = ClusterView(nodes=(Node(id=name, host="n1", cpu_units=1), Node(id="other", host="n2", cpu_units=1)))
        assert [node.standing for node in judged(view, found).nodes] == [Standing.EXCLUDED, Standing.GOOD]
