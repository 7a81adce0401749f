"""Moments by hand: nodes of 4 GPUs, gangs of one GPU a worker."""

from __future__ import annotations

from typing import Any

from scheduling.strategies import NOW, Moment

from orchestrator.control.scheduler.model import CPU_UNITS, ClusterView, Demand, Job, Node, Policy, Run


def node(name: str, gpus: int = 4, **more: Any) -> Node:
    return Node(id=name, cpu_units=16 * CPU_UNITS, gpus=gpus, **more)


def need(workers: int, **more: Any) -> Demand:
    return Demand(num_workers=workers, cpu_units=CPU_UNITS, gpus=1, **more)


def job(name: str, workers: int, waits: float = 60.0, **more: Any) -> Job:
    demand = more.pop("demand", need(workers))
    return Job(id=name, demand=demand, submitted_s=NOW - waits, queued_s=NOW - waits, **more)


def run(name: str, *placement: tuple[str, int], ran: float = 7200.0, **more: Any) -> Run:
    about = {key: more.pop(key) for key in ("preemptible", "preemptions", "smaller", "larger", "tenant", "resized_s") if key in more}
    return Run(job=job(name, sum(count for _, count in placement), ran, **about), placement=placement, started_s=NOW - ran, **more)


TWO = ClusterView(nodes=(node("n0"), node("n1")))
PREEMPTIVE = Policy(mode="preemptive")
BATCH = Policy(mode="batch")


def moment(*queue: Job, running: tuple[Run, ...] = (), cluster: ClusterView = TWO, policy: Policy = BATCH) -> Moment:
    return Moment(cluster=cluster, queue=queue, running=running, policy=policy)
