"""What the scheduler's order to leave has cost a job, by its goodput ledger. Pure.

From the moment that it was told until it trains again, or has ended, all that its workers did but useful work is lost: the save, the way
out and the next start, and what they had done after the step that they go on from. Each is a bucket of the ledger, so that the receipt is a
difference of two ledgers. The wait for the next place, in which it held nothing, is no loss; it is told beside it, as is the useful work,
so that the receipt closes: together they are all of the time.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from orchestrator.events import Event, EventKind
from orchestrator.job import Job, JobState
from orchestrator.service import Order
from orchestrator.supervision.accounting import WAITS, Bucket
from orchestrator.supervision.ledger import Ledger, as_of

LOST = (
    Bucket.LOST, Bucket.CHECKPOINT, Bucket.IDLE, Bucket.PROVISION, Bucket.START, Bucket.RECOVERY, Bucket.DETECTION, Bucket.HANG,
    Bucket.UNATTRIBUTED,
)  # fmt: skip

_NAMES = {Bucket.LOST: "work_done_again"}
"""In the receipt, whose total is what is lost."""


def opened(job: Job) -> tuple[dict[str, float], float]:
    """(worker-seconds by bucket, as of when) of a job that is told to leave now."""
    ledger = Ledger.from_dict(job.progress.ledger) if job.progress.ledger else Ledger(until_s=job.queued_s)
    return {bucket.value: seconds for bucket, seconds in ledger.seconds.items()}, ledger.until_s


def receipt(job: Job, now: float) -> Event | None:
    """Of a job that trains again after it has left, or has ended; None if there is nothing to account for."""
    order = job.order
    if order is None or not (job.state.terminal or (order.left and job.state is JobState.RUNNING)):
        return None
    ledger = as_of(job, now)
    if ledger is None:
        return None
    width = int(job.spec.resources.gpus_per_worker) or 1
    lost = {bucket: width * _grown(order.ledger, ledger, bucket) for bucket in LOST}
    waited = {bucket: width * _grown(order.ledger, ledger, bucket) for bucket in WAITS}
    useful = math.fsum(width * _grown(order.ledger, ledger, bucket) for bucket in Bucket if bucket not in (*LOST, *WAITS))
    total = math.fsum(lost.values())
    fields = {
        "order": order.kind, "for_job": order.for_job, "lost_gpu_s": total, "expected_gpu_s": order.cost, "since_s": order.ledger_s,
        "until_s": ledger.until_s, "useful_gpu_s": useful,
        **{f"{_NAMES.get(bucket, bucket.value)}_gpu_s": seconds for bucket, seconds in (waited | lost).items()},
    }  # fmt: skip
    return Event(kind=EventKind.RECEIPT, job_id=job.id, time_s=now, message=_sentence(order, lost, total), fields=fields)


def _grown(before: Mapping[str, float], ledger: Ledger, bucket: Bucket) -> float:
    return ledger.seconds.get(bucket, 0.0) - before.get(bucket.value, 0.0)


def _sentence(order: Order, lost: Mapping[Bucket, float], total: float) -> str:
    parts = ", ".join(
        f"{_NAMES.get(bucket, bucket.value).replace('_', ' ')} {seconds:.1f}" for bucket, seconds in lost.items() if seconds >= 0.05
    )
    whom = f" for {order.for_job}" if order.for_job else ""
    what = "left" if order.kind == "preempt" else "changed its number of workers"
    return f"it {what}{whom}: {total:.1f} GPU-seconds were lost" + (f" ({parts})" if parts else "")
