"""The properties of plans on clusters that an autoscaler can make larger."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import replace

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scheduling.properties import no_gpu_in_two_jobs, orders_are_possible
from scheduling.strategies import Moment, moments

from orchestrator.control.nodes.provisioning import NodeType, extended
from orchestrator.control.scheduler import plan_ahead
from orchestrator.control.scheduler.model import CPU_UNITS

FEW = settings(max_examples=150, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
TYPES = st.builds(
    NodeType, name=st.sampled_from(["x", "y"]), cpu_units=st.sampled_from([8 * CPU_UNITS, 64 * CPU_UNITS]),
    gpus=st.sampled_from([0, 4, 8]), max_nodes=st.integers(0, 3),
)  # fmt: skip


@FEW
@given(moments(), st.lists(TYPES, max_size=2, unique_by=lambda kind: kind.name), st.integers(0, 2))
def test_nothing_is_done_on_nodes_that_are_not_there_and_they_are_promised_once(moment: Moment, types: list[NodeType], starting: int):
    view = extended(moment.cluster, types, None, {"x": starting})
    whole = replace(moment, cluster=view, planner=plan_ahead)
    decided = whole.plan()
    assert not [start for start in decided.starts if any(node in view.coming for node, _ in start.placement)]
    assert not [order for order in decided.resizes if any(node in view.coming for node, _ in order.placement)]
    assert not [kept for kept in decided.reservations if kept.job_id in {ask.job_id for ask in decided.asks}]
    there = replace(moment, cluster=view.there)
    assert not [*no_gpu_in_two_jobs(there, decided), *orders_are_possible(there, decided)]

    jobs = {job.id: job for job in (*moment.queue, *(run.job for run in moment.running))}
    free = {node.id: [node.cpu_units, node.gpus] for node in view.coming.values()}
    for ask in decided.asks:
        assert any(node in view.coming for node, _ in ask.placement)
        for node, workers in ask.placement:
            if node in free:
                free[node][0] -= workers * jobs[ask.job_id].demand.cpu_units
                free[node][1] -= workers * jobs[ask.job_id].demand.gpus
    assert all(left >= 0 for row in free.values() for left in row), "no node that comes is promised twice"

    waiting = Counter(job.id for job in moment.queue)
    waiting.subtract(start.job_id for start in decided.starts)
    assert Counter(decided.order) == +waiting, "every job that waits is in the order once"
    assert set(decided.reasons) == set(decided.order) and len(decided.reasons) == len(decided.order)
    told: dict[str, set[str]] = defaultdict(set)
    for order in (*decided.preempts, *decided.resizes):
        told[order.for_job].add(order.job_id)
    assert not [ask for ask in decided.asks if told[ask.job_id] and ask.job_id in waiting], "nobody leaves for a place that is not there"


@FEW
@given(moments())
def test_where_nothing_can_come_it_is_the_plan_itself(moment: Moment):
    assert replace(moment, planner=plan_ahead).plan() == moment.plan()
