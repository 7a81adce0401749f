"""Two jobs on a cluster that begins without workers, with a node that is taken away in between: for the fault test and the campaign."""

from __future__ import annotations

import time
from typing import Any

from harness import TINY, Sandbox, held, slowed
from raylet_provider import ScalingCluster

from orchestrator.events import Event, EventKind
from orchestrator.job import JobState
from orchestrator.supervision.accounting import Bucket

STEPS = 200
NOTICE_S = 20.0
GPUS = 8
"""Of a node, and of a job: each job needs a node of its own."""


def scaling_cluster(box: Sandbox, idle_s: float = 4.0) -> ScalingCluster:
    """From no node to two. `idle_s`: a node without work leaves after so long."""
    return ScalingCluster(box, {"CPU": 1, "GPU": GPUS}, max_nodes=2, idle_s=idle_s)


def trial(box: Sandbox, cluster: ScalingCluster, drained_after: int, notice_s: float = NOTICE_S) -> dict[str, Any]:
    """The first job waits in step 21 until the second one, whose node is drained after step `drained_after`, has ended. What was seen:

    `asked`: reasons of the first one's wait; `gpus`: while both ran; `states` and `restarts` of both, `preemptions` of the second;
    `repeated`: steps that it had done and did again; `lost_s`: worker-seconds of work the first one lost; `nodes_s`: how long each waited
    for nodes to be started, and to join, in worker-seconds; `equal`: whether both ended with the same losses and state, bit for bit;
    `empty_s`: from the end of the last job to a cluster without a node.
    """
    settings = (
        *TINY, f"cluster.address={cluster.address}", "resources.gpus_per_worker=1", f"training.max_steps={STEPS}",
        "checkpoint.interval_steps=1000",
    )  # fmt: skip
    go_on, has_left = (box.root / f"{what}-{time.monotonic_ns()}" for what in ("go-on", "has-left"))
    first = box.submit(*settings, *held(go_on, 20))
    box.wait_step(first, 10)
    second = box.submit(*settings, *slowed(has_left, drained_after))
    box.wait_step(second, drained_after)
    gpus = GPUS * len(cluster.workers()) if box.job(first).state is JobState.RUNNING else 0
    ((node, _),) = box.job(second).placement
    cluster.drain(node, notice_s)
    box.wait_until(lambda: box.job(second).run == 2, "the way back to the queue")
    saved = box.job(second).progress
    has_left.touch()
    jobs = [box.wait_ended(second)]
    go_on.touch()
    jobs.insert(0, box.wait_ended(first))
    ended_s = time.monotonic()
    box.wait_until(lambda: not cluster.workers(), "the end of all idle nodes")
    restored = next(event.fields["step"] for event in _told(box, second, EventKind.RESTORED))
    ledgers = [box.ledger(job.id) for job in jobs]
    return {
        "asked": [event.message for event in _told(box, first, EventKind.WAITING)], "gpus": gpus,
        "states": [job.state.value for job in jobs], "restarts": [job.progress.restarts for job in jobs],
        "preemptions": [job.progress.preemptions for job in jobs], "repeated": saved.step - restored,
        "lost_s": round(ledgers[0].seconds[Bucket.LOST], 3),
        "nodes_s": [tuple(round(ledger.seconds.get(bucket, 0.0), 1) for bucket in (Bucket.LAUNCH, Bucket.BOOT)) for ledger in ledgers],
        "equal": (box.history(first), box.fingerprint(first)) == (box.history(second), box.fingerprint(second)),
        "empty_s": round(time.monotonic() - ended_s, 1),
    }  # fmt: skip


def _told(box: Sandbox, job_id: str, kind: EventKind) -> list[Event]:
    return [event for _, event in box.client.events(job_id) if event.kind is kind]
