"""Claim: a decision of the scheduler takes milliseconds, with thousands of jobs waiting.

    python benchmarks/scheduler_plan.py [--plans 300]

Simulated is a cluster that is full, with about the named number of jobs waiting: as many come as start. What is timed is each call of
`plan` after the one that fills the cluster, with whatever changed in the round before it: in time of its CPU, so that what else the machine
does is not counted.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import itertools
import random
import sys
import time
from dataclasses import replace
from typing import Any

from record import ROOT, publish, table

sys.path.insert(0, str(ROOT))
from orchestrator.config import load_simulation
from orchestrator.control.scheduler import Policy, plan
from orchestrator.simulation.engine import simulate
from orchestrator.simulation.generate import generate
from orchestrator.simulation.metrics import percentile
from orchestrator.simulation.model import Shape, TraceJob, World

GPUS_PER_NODE = 8
BARS_MS = {(128, 1_000): 5.0, (1_000, 10_000): 50.0}
"""Of the 99th percentile, by (nodes, jobs that wait)."""
ARRIVALS_A_ROUND = {128: 4, 1_000: 30}
EVICTIONS_S = 1860.0
"""When wide gangs have just been evicted for three quarters of the queue: as many come anew."""


class Enough(Exception):
    """As many plans have been timed as were asked for."""


class Timed:
    """The scheduler under a stopwatch."""

    def __init__(self, plans: int) -> None:
        self.seconds: list[float] = []
        self.waiting: list[int] = []
        self._plans = plans

    def __call__(self, cluster: Any, queue: Any, running: Any, usage: Any, now: float, policy: Policy) -> Any:
        began = time.thread_time()
        decided = plan(cluster, queue, running, usage, now, policy)
        if now > 0:
            self.seconds.append(time.thread_time() - began)
            self.waiting.append(len(queue))
        if len(self.seconds) >= self._plans:
            raise Enough
        return decided


def full_cluster(nodes: int, waiting: int, plans: int) -> tuple[TraceJob, ...]:
    """At the beginning enough jobs to fill the cluster; a round later the queue; then so many in each round."""
    gpus, each, refill = nodes * GPUS_PER_NODE, ARRIVALS_A_ROUND[nodes], 3 * waiting // 4
    draft = generate("plain", jobs=gpus + waiting + refill + each * plans, gpus=gpus, seed=1)
    shuffled = random.Random(1).sample(draft, len(draft))
    asked = itertools.accumulate(job.gpus for job in shuffled)
    filling = next(index for index, held in enumerate(asked, 1) if held >= gpus)
    first = (replace(job, submit_s=0.0) for job in shuffled[:filling])
    rest = iter(shuffled[filling:])
    queue = (replace(job, submit_s=60.0) for job in itertools.islice(rest, waiting))
    again = (replace(job, submit_s=EVICTIONS_S) for job in itertools.islice(rest, refill))
    later = (replace(job, submit_s=60.0 * (2 + index // each)) for index, job in enumerate(rest))
    return (*first, *queue, *again, *later)


def measure(nodes: int, waiting: int, plans: int, policy: Policy) -> Timed:
    timed = Timed(plans)
    gc.collect()
    world = World(shapes=(Shape(nodes=nodes, gpus_per_node=GPUS_PER_NODE),))
    with contextlib.suppress(Enough):
        simulate(full_cluster(nodes, waiting, plans), world, timed, policy)
    return timed


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--plans", type=int, default=300)
    plans = parser.parse_args().plans
    lines, p99 = [], {}
    for (nodes, waiting), bar in BARS_MS.items():
        for mode in ("preemptive", "batch"):
            timed = measure(nodes, waiting, plans, load_simulation([f"scheduler={mode}"]).scheduler)
            times = sorted(seconds * 1000 for seconds in timed.seconds)
            p99[nodes, waiting, mode] = percentile(times, 99)
            queue = f"{min(timed.waiting)} to {max(timed.waiting)}"
            cells = (f"{value:.2f}" for value in (percentile(times, 50), percentile(times, 99), times[-1]))
            lines.append((f"{nodes} nodes, {mode}", queue, *cells, bar))
            print(" | ".join(map(str, lines[-1])), flush=True)
    worst = {size: max(value for (*named, _), value in p99.items() if tuple(named) == size) for size in BARS_MS}
    return publish(
        "scheduler_plan", "A decision of the scheduler takes milliseconds, with thousands of jobs waiting",
        ours={f"{nodes} nodes x {waiting} jobs": round(value, 2) for (nodes, waiting), value in worst.items()},
        bar={f"{nodes} nodes x {waiting} jobs": value for (nodes, waiting), value in BARS_MS.items()},
        unit="ms, p99", plans=plans,
        peers={"KAI scheduler, a cycle at 4,000 nodes": 2_300.0}, holds=all(worst[size] <= BARS_MS[size] for size in BARS_MS),
        rows=table(("", "jobs waiting", "p50 ms", "p99 ms", "most ms", "bar of p99"), lines),
    )  # fmt: skip


if __name__ == "__main__":
    raise SystemExit(main())
