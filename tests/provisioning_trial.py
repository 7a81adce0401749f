"""Two jobs of 8 pretended GPUs on a cluster that begins without workers, one of whose nodes is taken: for the test and the campaign."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from harness import TINY, Sandbox
from raylet_provider import ScalingCluster

from orchestrator.events import Event, EventKind
from orchestrator.job import JobState
from orchestrator.supervision.accounting import Bucket

IDLE_S = 4.0
"""After which the autoscaler ends a node."""
NOTICE_S = 20.0
STEPS = 200
LIMIT_S = 400.0
"""Of each wait."""
ASKED = "waits for nodes: 8 more GPUs asked of the autoscaler"


@dataclass(kw_only=True)
class Outcome:
    drained_at: int
    """Step in which the node of the second job was taken, with `NOTICE_S` to go."""
    nodes: int = 0
    """Workers' nodes when both jobs trained."""
    lost_steps: int = 0
    """Of the second job, by the drain."""
    lost_s: float = 0.0
    """Worker-seconds of the first job, whose node stays."""
    interrupted: tuple[int, int] = (0, 0)
    """Preemptions and restarts of the first job."""
    taken: tuple[int, int] = (0, 0)
    """Preemptions and restarts of the second job."""
    equal: bool = False
    """Losses and weights of both jobs, bit for bit."""
    provision_s: tuple[float, ...] = field(default=())
    """From the demand to the place, on nodes that were not there: of the first job, of the second, of the second once more."""
    empty_s: float = 0.0
    """From the end of the last job to the end of the last node."""

    def amiss(self) -> list[str]:
        """What the bar does not allow."""
        checks = {
            "16 GPUs": self.nodes == 2,
            "at most the step in flight": 0 <= self.lost_steps <= 1,
            "nothing of the other job": self.lost_s == 0,
            "the other job is left alone": self.interrupted == (0, 0),
            "one preemption": self.taken == (1, 0),
            "equal losses": self.equal,
            "each place had to be asked for": len(self.provision_s) == 3,
        }
        return [what for what, holds in checks.items() if not holds]


@contextmanager
def scaling() -> Iterator[tuple[Sandbox, ScalingCluster]]:
    """Up to two nodes of 8 GPUs."""
    sandbox = Sandbox()
    try:
        cluster = ScalingCluster(sandbox, {"CPU": 1, "GPU": 8}, max_nodes=2, idle_s=IDLE_S)
        try:
            yield sandbox, cluster
        finally:
            sandbox.run("down")  # first: a control plane that looks for its cluster waits long
            cluster.close()
    finally:
        sandbox.close()


def grow_drain_and_shrink(sandbox: Sandbox, cluster: ScalingCluster, drained_at: int) -> Outcome:
    found, settings = Outcome(drained_at=drained_at), (
        *TINY, f"cluster.address={cluster.address}", "resources.gpus_per_worker=1", f"training.max_steps={STEPS}",
        "checkpoint.interval_steps=1000",
    )  # fmt: skip
    go_on = sandbox.root / "go-on"  # the first job, on the first node, waits in step 21 until the other has ended
    first = sandbox.submit(*settings, f"+workload.options.waits_for={go_on}", "recovery.hang_timeout_s=0")
    sandbox.wait_step(first, 10)
    second = sandbox.submit(*settings, "+workload.options.sleep_s=0.03")
    sandbox.wait_step(second, drained_at)
    found.nodes = len(cluster.workers()) if sandbox.job(first).state is JobState.RUNNING else 0

    ((node, _),) = sandbox.job(second).placement
    cluster.drain(node, NOTICE_S)
    sandbox.wait_until(lambda: sandbox.job(second).run == 2, "the way back to the queue", LIMIT_S)
    saved = sandbox.job(second).progress
    job = sandbox.wait_ended(second, LIMIT_S)
    assert job.state is JobState.SUCCEEDED, sandbox.describe()
    restored = next(event.fields["step"] for event in told(sandbox, second, EventKind.RESTORED))
    found.lost_steps, found.taken = saved.step - restored, (job.progress.preemptions, job.progress.restarts)

    go_on.touch()
    job = sandbox.wait_ended(first, LIMIT_S)
    assert job.state is JobState.SUCCEEDED and job.ended_s is not None, sandbox.describe()
    found.interrupted = job.progress.preemptions, job.progress.restarts
    found.lost_s = sandbox.ledger(first).seconds[Bucket.LOST]
    found.provision_s = tuple(passed for job_id in (first, second) for passed in _provisions(sandbox, job_id))
    same_losses = sandbox.history(second) == sandbox.history(first)
    found.equal = same_losses and sandbox.fingerprint(second) == sandbox.fingerprint(first)
    gone_s = sandbox.wait_until(lambda: not cluster.workers() and time.time(), "the end of all idle nodes", LIMIT_S)
    found.empty_s = gone_s - job.ended_s
    return found


def told(sandbox: Sandbox, job_id: str, kind: EventKind) -> list[Event]:
    return [event for _, event in sandbox.client.events(job_id) if event.kind is kind]


def _provisions(sandbox: Sandbox, job_id: str) -> Iterator[float]:
    """Seconds from each demand of nodes to the place that it brought."""
    asked_s = None
    for _, event in sandbox.client.events(job_id):
        if event.kind is EventKind.WAITING and event.message.startswith(ASKED) and asked_s is None:
            asked_s = event.time_s
        if event.kind is EventKind.ADMITTED and asked_s is not None:
            yield event.time_s - asked_s
            asked_s = None
