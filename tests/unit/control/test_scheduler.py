from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.control.scheduler import ClusterView, Demand, Job, Policy, Run, Standing, Usage, feasible, plan
from orchestrator.control.scheduler.model import CPU_UNITS, Node
from orchestrator.spec import DataSpec, JobSpec, ModelSpec, ParallelismSpec, ResourcesSpec, TrainingSpec, WorkloadSpec


def node(name: str, cpus: float, gpus: int = 0, **more: Any) -> Node:
    return Node(id=name, cpu_units=round(cpus * CPU_UNITS), gpus=gpus, **more)


def need(workers: int, cpus: float = 1, gpus: int = 0, most: int = 0) -> Demand:
    return Demand(num_workers=workers, cpu_units=round(cpus * CPU_UNITS), gpus=gpus, max_workers_per_node=most)


def queued(name: str, demand: Demand, at: float = 0) -> Job:
    return Job(id=name, submitted_s=at, queued_s=at, demand=demand)


def running(name: str, demand: Demand, placement: Any, **more: Any) -> Run:
    return Run(job=queued(name, demand), placement=placement, started_s=0.0, **more)


def decide(nodes, queue, running=()):
    return plan(ClusterView(nodes=tuple(nodes)), tuple(queue), tuple(running), Usage(), 0.0, Policy())


def starts(decided):
    return {start.job_id: start.placement for start in decided.starts}


def test_first_in_first_out_and_each_that_waits_knows_why():
    decided = decide(
        [node("n", 2)],
        [queued("c", need(1), 3), queued("a", need(1), 1), queued("b", need(2), 2)],
    )
    assert starts(decided) == {"a": (("n", 1),)}
    assert decided.reasons == {"b": "needs 2 x 1 CPU; 1 CPU is free, held by a", "c": "waits its turn behind b"}


def test_a_job_that_can_not_run_at_all_does_not_keep_the_others():
    decided = decide([node("n", 2)], [queued("a", need(3), 1), queued("b", need(2), 2)])
    assert starts(decided) == {"b": (("n", 2),)}
    assert decided.reasons == {"a": "needs 3 x 1 CPU; the cluster has 2 CPUs on 1 node in all"}


def test_halves_of_cpus_add_up_exactly():
    held = [running(f"r{i}", need(1, 0.1), (("n", 1),)) for i in range(7)]
    assert starts(decide([node("n", 1)], [queued("a", need(3, 0.1))], held)) == {"a": (("n", 3),)}
    assert not decide([node("n", 1)], [queued("a", need(4, 0.1))], held).starts


def test_the_tightest_node_is_taken_and_a_gang_spreads_over_the_fewest():
    nodes = [node("n1", 4), node("n2", 3), node("n3", 8)]
    assert starts(decide(nodes, [queued("a", need(3))])) == {"a": (("n2", 3),)}
    assert starts(decide(nodes, [queued("a", need(10))])) == {"a": (("n2", 2), ("n3", 8))}
    assert starts(decide(nodes, [queued("a", need(3, most=1))])) == {"a": (("n1", 1), ("n2", 1), ("n3", 1))}


def test_gpus_count_and_a_cpu_job_keeps_away_from_them():
    nodes = [node("cpu", 8), node("gpu", 8, 4)]
    decided = decide(nodes, [queued("a", need(2), 1), queued("b", need(4, 1, 1), 2), queued("c", need(1, 1, 1), 3)])
    assert starts(decided) == {"a": (("cpu", 2),), "b": (("gpu", 4),)}
    assert decided.reasons["c"] == "needs 1 x 1 CPU and 1 GPU; 10 CPUs and 0 GPUs are free on 2 nodes, held by a, b"


def test_dead_and_draining_nodes_take_nothing_new():
    nodes = [node("n1", 2, alive=False), node("n2", 2, draining=True)]
    decided = decide(nodes, [queued("a", need(1))])
    assert not decided.starts
    assert "has 0 CPUs on 0 nodes" in decided.reasons["a"]


def test_feasible_names_the_numbers():
    view = ClusterView(nodes=(node("n", 2),))
    assert feasible(view, need(4, 0.5)) is None
    assert feasible(view, need(64)) == "needs 64 x 1 CPU; the cluster has 2 CPUs on 1 node in all"
    assert feasible(view, need(2, most=1)) == "needs 2 x 1 CPU, 1 at most on each node; the cluster has 2 CPUs on 1 node in all"
    assert feasible(view, need(1, 1, 1)) == "needs 1 x 1 CPU and 1 GPU; the cluster has 2 CPUs and 0 GPUs on 1 node in all"


def test_demand_of_a_spec():
    spec = JobSpec(
        workload=WorkloadSpec(name="w", entrypoint="w:W"), model=ModelSpec(name="m"), data=DataSpec(name="d"),
        training=TrainingSpec(max_steps=1, global_batch_size=12, micro_batch_size=1),
        resources=ResourcesSpec(num_workers=6, cpus_per_worker=0.5, gpus_per_worker=1, max_workers_per_node=2),
    )  # fmt: skip
    assert Demand.of(spec) == need(6, 0.5, 1, 2)
    pairs = replace(spec, parallelism=ParallelismSpec(tensor_parallel_size=2))
    assert Demand.of(pairs) == replace(need(6, 0.5, 1, 2), group=2)


def test_a_view_is_the_same_after_json():
    view = ClusterView(nodes=(node("n", 1.5, 2, draining=True),))
    assert ClusterView.from_dict(view.to_dict()) == view


demands = st.builds(need, st.integers(1, 6), st.sampled_from([0.1, 0.5, 1, 2.5]), st.integers(0, 1), st.integers(0, 2))
node_rows = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 4), st.booleans(), st.booleans()), max_size=5)
clusters = node_rows.map(
    lambda rows: [node(f"n{i}", cpus, gpus, alive=a or i == 0, draining=d and i > 1) for i, (cpus, gpus, a, d) in enumerate(rows)]
)
queue_rows = st.lists(st.tuples(demands, st.integers(0, 3)), max_size=6)
queues = queue_rows.map(lambda rows: [queued(f"j{i}", demand, at) for i, (demand, at) in enumerate(rows)])


def run_some(nodes, jobs):
    """Running jobs, placed by the scheduler itself."""
    decided = starts(decide(nodes, jobs))
    return [running(f"r-{job.id}", job.demand, decided[job.id]) for job in jobs if job.id in decided]


@settings(max_examples=150, deadline=None)
@given(clusters, queues, queues, st.randoms(use_true_random=False))
def test_no_over_allocation_all_or_nothing_and_no_dependence_on_order(nodes, before, queue, rng: random.Random):
    held = run_some(nodes, before)
    decided = decide(nodes, queue, held)
    demand = {job.id: job.demand for job in (*queue, *(run.job for run in held))}
    usable = {n.id: n for n in nodes if n.alive and not n.draining}
    used_cpus, used_gpus = Counter(), Counter()
    for job_id, placement in [*starts(decided).items(), *((run.job.id, run.placement) for run in held)]:
        assert sum(workers for _, workers in placement) == demand[job_id].num_workers
        for name, workers in placement:
            assert workers <= (demand[job_id].max_workers_per_node or workers)
            used_cpus[name] += workers * demand[job_id].cpu_units
            used_gpus[name] += workers * demand[job_id].gpus
    assert all(used_cpus[name] <= usable[name].cpu_units and used_gpus[name] <= usable[name].gpus for name in used_cpus)
    assert set(decided.reasons) | set(starts(decided)) == {job.id for job in queue}
    assert not set(decided.reasons) & set(starts(decided))
    shuffled = [rng.sample(part, len(part)) for part in (nodes, queue, held)]
    assert decide(*shuffled) == decided


@settings(max_examples=100, deadline=None)
@given(clusters, queues)
def test_nobody_who_can_run_is_overtaken_and_an_empty_cluster_never_idles(nodes, queue):
    decided = decide(nodes, queue)
    view = ClusterView(nodes=tuple(n for n in nodes if not n.draining))
    possible = [job.id for job in sorted(queue, key=lambda job: (job.queued_s, job.id)) if feasible(view, job.demand) is None]
    assert [start.job_id for start in decided.starts] == possible[: len(decided.starts)]
    assert bool(decided.starts) == bool(possible)


SUSPECT, EXCLUDED = Standing.SUSPECT, Standing.EXCLUDED


def test_suspected_nodes_are_taken_last():
    nodes = [node("n1", 4, standing=SUSPECT), node("n2", 8), node("n3", 2)]
    assert starts(decide(nodes, [queued("a", need(4))])) == {"a": (("n2", 4),)}, "n1 fits more tightly"
    assert starts(decide(nodes, [queued("a", need(10))])) == {"a": (("n2", 8), ("n3", 2))}
    assert starts(decide(nodes, [queued("a", need(12))])) == {"a": (("n1", 4), ("n2", 8))}, "none but it is enough"
    held = [running("r", need(10), (("n2", 8), ("n3", 2)))]
    assert starts(decide(nodes, [queued("a", need(2))], held)) == {"a": (("n1", 2),)}, "rather than wait"


def test_excluded_nodes_are_not_taken_and_the_reason_names_them():
    nodes = [node("n1", 8, standing=EXCLUDED, host="bad-host"), node("n2", 2)]
    held = [running("r", need(1), (("n2", 1),))]
    decided = decide(nodes, [queued("a", need(2))], held)
    assert not decided.starts
    assert decided.reasons["a"] == (
        "needs 2 x 1 CPU; 1 CPU is free, held by r; kept out after their failures: bad-host (`orchestrator nodes`)"
    )
    assert starts(decide(nodes, [queued("a", need(2))])) == {"a": (("n2", 2),)}


def test_a_job_that_could_never_run_without_an_excluded_node_takes_it_with_a_warning():
    nodes = [node("n1", 8, standing=EXCLUDED, host="bad-host"), node("n2", 2)]
    (start,) = decide(nodes, [queued("a", need(4))]).starts
    assert start.placement == (("n1", 4),)
    assert start.warning == "runs on bad-host in spite of failures there (`orchestrator nodes`): it could never run without"
    assert [start.warning for start in decide(nodes, [queued("b", need(2))]).starts] == [""]


def test_what_an_excluded_node_holds_still_counts():
    nodes = [node("n1", 4, standing=EXCLUDED), node("n2", 2)]
    held = [running("r", need(3), (("n1", 3),))]
    assert not decide(nodes, [queued("a", need(4))], held).starts
