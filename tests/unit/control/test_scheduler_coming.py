from __future__ import annotations

import pytest

from orchestrator.control.nodes.provisioning import NodeType, extended
from orchestrator.control.scheduler import ClusterView, Demand, Job, Policy, Run, Standing, Usage, explain, feasible, plan, plan_ahead
from orchestrator.control.scheduler.model import CPU_UNITS, Node, Tenant

NOW = 1000.0
FIFO, PREEMPTIVE = Policy(), Policy(mode="preemptive", min_run_s=0.0)


def node(name, gpus=4, **more):
    return Node(id=name, cpu_units=8 * CPU_UNITS, gpus=gpus, type="gpu", **more)


def cluster(*nodes, max_nodes=4, starting=0, limit=None):
    types = [NodeType(name="gpu", cpu_units=8 * CPU_UNITS, gpus=4, max_nodes=max_nodes)]
    return extended(ClusterView(nodes=tuple(nodes)), types, limit, {"gpu": starting})


def job(name, workers, submitted_s=0.0, **more):
    demand = Demand(num_workers=workers, cpu_units=CPU_UNITS, gpus=1)
    return Job(id=name, demand=demand, submitted_s=submitted_s, queued_s=submitted_s, **more)


def run(name, placement, started_s=0.0, **more):
    workers = sum(count for _, count in placement)
    return Run(job=job(name, workers, **more.pop("job", {})), placement=placement, started_s=started_s, **more)


def decide(view, *queue, running=(), policy=FIFO):
    return plan_ahead(view, tuple(queue), tuple(running), Usage(), NOW, policy)


def asked(decided):
    return {ask.job_id: len([node for node, _ in ask.placement if node.startswith("~")]) for ask in decided.asks}


def test_what_is_there_is_taken_first():
    decided = decide(cluster(node("a"), node("b", standing=Standing.SUSPECT)), job("one", 4), job("two", 4, 1.0))
    assert [(start.job_id, start.placement) for start in decided.starts] == [("one", (("a", 4),)), ("two", (("b", 4),))]
    assert decided.asks == ()


def test_a_job_that_fits_only_a_larger_cluster_waits_for_nodes_and_says_how_many():
    view = cluster(node("a"))
    decided = decide(view, job("large", 12))
    assert (decided.starts, asked(decided), decided.order) == ((), {"large": 2}, ("large",))
    assert decided.reasons["large"] == "waits for nodes: 8 more GPUs asked of the autoscaler"
    assert dict(decided.reasons) == {"large": decided.reasons["large"]} and len(decided.reasons) == 1
    assert feasible(view, job("large", 16).demand) is None
    assert feasible(view, job("huge", 17).demand) == "needs 17 x 1 CPU and 1 GPU; the cluster has 32 CPUs and 16 GPUs on 4 nodes in all"


def test_nodes_on_their_way_are_told_and_taken_before_others():
    decided = decide(cluster(node("a"), starting=1), job("large", 12))
    assert decided.reasons["large"] == "waits for nodes: 8 more GPUs asked of the autoscaler; 1 of 2 nodes on the way"


@pytest.mark.parametrize("policy", [FIFO, Policy(mode="batch"), PREEMPTIVE])
def test_what_is_there_of_a_place_is_kept_while_the_rest_comes(policy):
    decided = decide(cluster(node("a"), node("b"), max_nodes=3), job("large", 12, priority=1), job("small", 1, 1.0), policy=policy)
    assert asked(decided) == {"large": 1}
    assert decided.starts == (), "nodes that come one by one are not taken by those behind"


def test_gangs_are_asked_for_as_a_whole_or_not_at_all():
    decided = decide(cluster(node("a"), max_nodes=3), job("first", 8), job("second", 8, 1.0), policy=Policy(mode="batch"))
    assert asked(decided) == {"first": 1}, "of the second, one node of two could come"
    assert "second" in decided.reasons


def test_a_place_that_becomes_free_ends_the_wait():
    view = cluster(node("a"))
    held = run("other", (("a", 4),))
    assert asked(decide(view, job("one", 4), running=[held])) == {"one": 1}
    decided = decide(view, job("one", 4))
    assert [start.job_id for start in decided.starts] == ["one"] and decided.asks == ()


def test_nobody_is_preempted_while_nodes_can_come_nor_for_a_place_that_is_not_there():
    held = [run("low", (("a", 4),)), run("low-2", (("b", 4),))]
    decided = decide(cluster(node("a"), node("b"), max_nodes=3), job("high", 4, priority=5), running=held, policy=PREEMPTIVE)
    assert (decided.preempts, asked(decided)) == ((), {"high": 1})
    decided = decide(cluster(node("a"), node("b"), max_nodes=3), job("high", 12, priority=5), running=held, policy=PREEMPTIVE)
    assert (decided.preempts, decided.reservations, asked(decided)) == ((), (), {"high": 1}), "first the node, then the others"
    there = cluster(node("a"), node("b"), node("c"), max_nodes=3)
    decided = decide(there, job("high", 12, priority=5), running=held, policy=PREEMPTIVE)
    assert {order.job_id for order in decided.preempts} == {"low", "low-2"} and decided.asks == ()


def test_quotas_hold_for_nodes_that_could_come():
    policy = Policy(mode="batch", tenants={"lab": Tenant(quota=8)})
    decided = decide(cluster(), job("one", 8, tenant="lab", priority=1), job("two", 4, 1.0, tenant="lab"), policy=policy)
    assert asked(decided) == {"one": 2}
    assert decided.reasons["two"] == "needs 4 of the quota of lab: 8 of 8 are in use"


@pytest.mark.parametrize("policy", [FIFO, Policy(mode="batch")])
def test_an_elastic_job_waits_for_nodes_as_long_as_it_says_and_then_starts_with_fewer(policy):
    elastic = job("elastic", 8, smaller=(2, 4), shrink_after_s=30.0, short_since_s=NOW - 29.0)
    decided = decide(cluster(node("a"), max_nodes=2), elastic, policy=policy)
    assert (decided.starts, asked(decided), decided.next_change_at) == ((), {"elastic": 1}, NOW + 1.0)
    assert decided.short == ("elastic",), "the time counts from here"
    late = job("elastic", 8, smaller=(2, 4), shrink_after_s=30.0, short_since_s=NOW - 30.0)
    decided = decide(cluster(node("a"), max_nodes=2), late, policy=policy)
    assert [(start.job_id, start.placement) for start in decided.starts] == [("elastic", (("a", 4),))]


def test_a_run_with_fewer_workers_asks_for_the_nodes_that_it_lacks_and_one_that_has_all_does_not():
    short = Run(job=job("short", 8, smaller=(4,)), placement=(("a", 4),), started_s=0.0, may_grow=True)
    decided = decide(cluster(node("a"), max_nodes=2), running=[short])
    assert (decided.resizes, asked(decided)) == ((), {"short": 1})
    whole = Run(job=job("whole", 4, larger=(8,)), placement=(("a", 4),), started_s=0.0, may_grow=True)
    decided = decide(cluster(node("a"), max_nodes=2), running=[whole], policy=Policy(mode="batch"))
    assert (decided.resizes, decided.asks) == ((), ())


def test_a_machine_that_jobs_are_kept_from_is_replaced_by_one_that_comes():
    decided = decide(cluster(node("a", standing=Standing.EXCLUDED), max_nodes=2), job("one", 4))
    assert (decided.starts, asked(decided)) == ((), {"one": 1})


def test_without_an_autoscaler_it_is_the_plan_itself():
    view, queue = ClusterView(nodes=(node("a"),)), (job("one", 8), job("two", 1, 1.0))
    assert plan_ahead(view, queue, (), Usage(), NOW, FIFO) == plan(view, queue, (), Usage(), NOW, FIFO)


def test_why_a_job_waits_is_explained_on_the_nodes_that_are_there():
    found = explain("one", cluster(node("a")), (job("one", 8),), (), Usage(), NOW, FIFO)
    assert found.reason == "needs 8 x 1 CPU and 1 GPU; the cluster has 8 CPUs and 4 GPUs on 1 node in all"


def test_a_view_with_nodes_that_could_come_is_read_back_as_it_was_written():
    view = cluster(node("a"), starting=1)
    assert ClusterView.from_dict(view.to_dict()) == view


def test_no_more_nodes_are_added_than_all_types_may_have_together():
    view = cluster(node("a"), max_nodes=4, limit=3)
    assert len(view.coming) == 2 and view.there == ClusterView(nodes=(node("a"),))
