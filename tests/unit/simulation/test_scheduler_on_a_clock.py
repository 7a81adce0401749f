"""The scheduler itself in the simulator: asked at the moments it names, it decides as if it were asked in every round."""

from __future__ import annotations

from dataclasses import replace

import pytest

from orchestrator.control.scheduler import Policy, plan
from orchestrator.simulation.engine import simulate
from orchestrator.simulation.generate import generate
from orchestrator.simulation.model import Shape, TraceJob, World

FOUR_NODES = World(shapes=(Shape(nodes=4, gpus_per_node=8),))
FAILING = replace(FOUR_NODES, node_mtbf_s=86_400.0, save_interval_s=1800.0, seed=1)


def short(recipe: str) -> tuple[TraceJob, ...]:
    """Every seventh of the times, so that there are not too many rounds."""
    trace = generate(recipe, jobs=100, gpus=32, seed=7)
    return tuple(replace(job, submit_s=job.submit_s // 7, duration_s=job.duration_s // 7) for job in trace)


@pytest.mark.parametrize(
    ("mode", "recipe", "world"),
    [
        *((mode, recipe, FOUR_NODES) for mode in ("batch", "preemptive") for recipe in ("overloaded", "tenants", "elastic")),
        *((mode, "elastic", FAILING) for mode in ("fifo", "batch", "preemptive")),
    ],
)
def test_skipping_rounds_changes_nothing(mode, recipe, world):
    trace = short(recipe)
    policy = Policy(mode=mode, max_wait_s=4000.0, min_run_s=240.0, resize_interval_s=240.0, levels=(1_000.0, 10_000.0))
    skipping, stepping = (simulate(trace, world, plan, policy, every_round=every) for every in (False, True))
    assert [found.job.id for found, other in zip(skipping.jobs, stepping.jobs, strict=True) if found != other] == []
    assert skipping.timeline == stepping.timeline
    assert skipping.plans < stepping.plans


def test_the_same_trace_gives_the_same_outcome():
    trace = generate("tenants", jobs=150, gpus=32, seed=8)
    first, again = (simulate(trace, FAILING, plan, Policy(mode="preemptive")) for _ in range(2))
    assert first == again
