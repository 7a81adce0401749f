"""A control plane with nobody behind it, for whoever looks at the page: a cluster, its jobs as they stand in the middle of a day, and the
API on a port of its own."""

from __future__ import annotations

import dataclasses
import json
import math
import random
import time
from typing import Any

from orchestrator.control.api.server import ApiServer
from orchestrator.control.client import CLUSTER
from orchestrator.control.planning.policy import ChosenPolicy, keep_policy
from orchestrator.control.pulse import Pulse
from orchestrator.control.records.store import JobStore
from orchestrator.control.records.users import Users
from orchestrator.control.scheduler import ClusterView
from orchestrator.control.scheduler.model import CPU_UNITS, Node, Standing
from orchestrator.events import Event, EventKind
from orchestrator.job import EndReason, Job, JobResult, JobState, Progress
from orchestrator.paths import Home, JobKeys
from orchestrator.spec import (
    DataSpec,
    JobSpec,
    ModelSpec,
    ResourcesSpec,
    SchedulingSpec,
    StorageSpec,
    TrackingSpec,
    TrainingSpec,
    WorkloadSpec,
)
from orchestrator.storage import open_store
from orchestrator.supervision.accounting import WAITS, Bucket
from orchestrator.supervision.ledger import Ledger

MARKUP = "<img src=x onerror=\"document.title='owned'\"><script>document.title='owned'</script><b>bold</b> & 'quotes'"
"""What must be shown letter by letter."""
HOUR_S, MINUTE_S = 3600.0, 60.0
RUN_ID = "0a1b2c3d4e5f60718293a4b5c6d7e8f9"
_SHARES = {
    Bucket.QUEUE: 0.044, Bucket.LAUNCH: 0.002, Bucket.BOOT: 0.004, Bucket.PROVISION: 0.001, Bucket.START: 0.006, Bucket.COMPILE: 0.004,
    Bucket.DATA: 0.011, Bucket.STEP: 0.873, Bucket.EVALUATION: 0.019, Bucket.CHECKPOINT: 0.012, Bucket.LOST: 0.009,
    Bucket.DETECTION: 0.002, Bucket.RECOVERY: 0.011, Bucket.IDLE: 0.002,
}  # fmt: skip


_HANG = """no rank has moved for 31 s: all wait for rank 5 on gpu-01, in backward
Thread 0x7f (most recent call first):
  File "train.py", line 210 in backward"""
_EVENTS: tuple[tuple[float, EventKind, str, dict[str, Any]], ...] = (
    (76.3, EventKind.SUBMITTED, "32 workers", {}),
    (76.0, EventKind.ADMITTED, "4 nodes: gpu-01 to gpu-04", {}),
    (75.9, EventKind.PREPARED, "1,204 shards, 98.1 billion tokens", {}),
    (75.8, EventKind.STARTED, "step 1 after 41 s", {}),
    (52.0, EventKind.COMMITTED, "step 27500", {}),
    (51.2, EventKind.RANK_LOST, "rank 13 on gpu-02: device failed (Xid 79: GPU has fallen off the bus)",
     {"incident": "DEVICE_FAULT", "node": "gpu-02"}),
    (51.1, EventKind.RESTARTED, "from step 27500, 24 s after the failure", {}),
    (30.4, EventKind.PREEMPTED, "for whisper-large-eval-77z: saves first", {}),
    (29.1, EventKind.RECEIPT, "it left for whisper-large-eval-77z: 1893.4 GPU-seconds were lost (checkpoint 402.1, start 1491.3)",
     {"order": "preempt", "for_job": "whisper-large-eval-77z", "lost_gpu_s": 1893.4, "expected_gpu_s": 1750.0}),
    (28.9, EventKind.RESTORED, "step 51200, read in 19 s", {}),
    (8.7, EventKind.HANG, _HANG, {"incident": "HANG", "node": "gpu-01"}),
    (8.6, EventKind.RESTARTED, "from step 73500, 38 s after the failure", {}),
    (0.6, EventKind.EVALUATED, "validation loss 2.3511, perplexity 10.50", {}),
    (0.1, EventKind.COMMITTED, "step 82000", {}),
)  # fmt: skip
"""Of the job with much to show: (hours ago, kind, message, fields)."""
_ENDED = (
    ("bert-large-mlm-5tt", JobState.SUCCEEDED, "completed", 1.0, 0.4),
    ("gpt-350m-ablate-2", JobState.SUCCEEDED, "completed", 1.0, 2.0),
    ("vit-tiny-debug-9", JobState.FAILED, "error in the workload: RuntimeError: size mismatch (64 vs 128) at model.py:88", 0.01, 3.1),
    ("gpt-1b-lr3e-4", JobState.CANCELLED, "cancelled by the user", 0.4, 5.5),
    ("t5-base-docstrings", JobState.SUCCEEDED, "completed", 1.0, 9.2),
)
"""(id, how it ended, why, how far it came, hours ago)."""


class Stage:
    def __init__(self, home: Home, open_reads: bool = False, port: int = 0) -> None:
        self.home, self.store, self.now = home, JobStore(home.jobs_db), time.time()
        self.pulse = Pulse()
        self.pulse.dashboard = "127.0.0.1:8265"
        users = Users(self.store.engine)
        roles = {"ann": ("language", "user"), "eve": ("vision", "viewer"), "root": ("ops", "admin")}
        self.tokens = {name: users.add(name, *role) for name, role in roles.items()}
        self._open_reads = open_reads
        self.serve(port)

    def serve(self, port: int = 0) -> None:
        self.server = ApiServer("127.0.0.1", port, open_reads=self._open_reads)
        self.server.start(self.home, JobStore(self.home.jobs_db), self.pulse)

    def stop(self) -> None:
        self.server.stop()
        self.server.close()

    def close(self) -> None:
        self.stop()
        self.store.close()

    def page(self, job_id: str = "") -> str:
        return f"{self.server.url}/ui/" + (f"job?id={job_id}" if job_id else "")

    # what is on it

    def put_cluster(self, num_nodes: int = 8) -> None:
        nodes = [
            Node(
                id=f"n{number}", host=f"gpu-{number + 1:02d}", cpu_units=96 * CPU_UNITS, gpus=8, draining=number == num_nodes - 1,
                standing=Standing.SUSPECT if number == num_nodes - 3 else Standing.GOOD,
            )
            for number in range(num_nodes)
        ]  # fmt: skip
        self.store.set_meta(CLUSTER, ClusterView(nodes=tuple(nodes)).to_dict())

    def spec(self, model: str, workers: int = 1, tenant: str = "language", priority: int = 0, max_steps: int = 20_000) -> JobSpec:
        return JobSpec(
            workload=WorkloadSpec(name="gpt", entrypoint="gpt:Gpt"), model=ModelSpec(name=model), data=DataSpec(name="python-source"),
            training=TrainingSpec(max_steps=max_steps, global_batch_size=8 * workers, micro_batch_size=8),
            resources=ResourcesSpec(num_workers=workers, gpus_per_worker=1, cpus_per_worker=8),
            scheduling=SchedulingSpec(tenant=tenant, priority=priority), storage=StorageSpec(url=self.home.store.as_uri()),
            tracking=TrackingSpec(uri="https://mlflow.example.org/base"),
        )  # fmt: skip

    def put(self, job_id: str, spec: JobSpec, events: tuple[Event, ...] = (), **values) -> Job:
        made = {"submitted_s": self.now - HOUR_S, "queued_s": self.now - HOUR_S, "user": "ann", "tenant": spec.scheduling.tenant}
        job = Job(id=job_id, spec=spec, **{**made, **values})
        self.store.put(job, events)
        return job

    def run(
        self, job_id: str, spec: JobSpec, nodes: tuple[tuple[str, int], ...], share: float, hours: float, state=JobState.RUNNING, **figures
    ) -> Job:
        """A job that has run for so long, and has come so far."""
        step, began_s = int(share * spec.training.max_steps), self.now - hours * HOUR_S
        left_s = hours * HOUR_S * (1 - share) / share if share else None
        worker_s = hours * HOUR_S * spec.resources.num_workers / (1 - sum(_SHARES[bucket] for bucket in WAITS))
        seconds = {bucket: worker_s * part for bucket, part in _SHARES.items()}
        ledger = Ledger(until_s=self.now, wall_s=hours * HOUR_S, worker_s=worker_s, seconds=seconds)
        progress = Progress(
            phase="training", step=step, max_steps=spec.training.max_steps, eta_s=left_s, updated_s=self.now,
            ledger=ledger.to_dict() if share else {}, committed_step=step // 500 * 500 or None,
        )  # fmt: skip
        return self.put(
            job_id, spec, state=state, placement=nodes, progress=dataclasses.replace(progress, **figures), submitted_s=began_s - 900,
            queued_s=began_s - 900, started_s=began_s,
        )  # fmt: skip

    def wait(self, job_id: str, spec: JobSpec, position: int, reason: str, start_s: float | None = None, **values) -> Job:
        return self.put(job_id, spec, position=position, reason=reason, start_s=start_s, **values)

    def put_output(self, job_id: str, rank: int, offset: int, text: str, epoch: int = 1) -> None:
        store = open_store(self.store.get(job_id).spec.storage)
        store.put(JobKeys(job_id).lease(epoch), b"{}")
        store.put(JobKeys(job_id).log_piece(epoch, rank, offset, self.now + offset / 100), text.encode())

    def put_journal(self, job_id: str, records: list[dict[str, Any]], first: int = 1) -> None:
        lines = [json.dumps({"seq": first + index, "time_s": self.now, **record}) + "\n" for index, record in enumerate(records)]
        open_store(self.store.get(job_id).spec.storage).put(JobKeys(job_id).journal_segment(first), "".join(lines).encode())

    def put_day(self) -> str:
        """All of it. Returns the id of a job that has much to show."""
        self.put_cluster()
        keep_policy(self.store, ChosenPolicy(name="team", settings={"tenants": {"language": {"quota": 40}, "vision": {"quota": 24}}}))
        shown = self._put_main_job()
        self.run("vit-base-imagenet-4kq", self.spec("vit-base", 8, "vision", max_steps=90_000), (("n4", 8),), 0.71, 9.4,
                 loss=2.104, samples_per_s=6240.0)  # fmt: skip
        self.run("resnet-101-sweep-7ab", self.spec("resnet-101", 4, "vision", max_steps=30_000), (("n5", 4),), 0.38, 1.1,
                 loss=1.377, samples_per_s=3110.0)  # fmt: skip
        self.run("whisper-small-de-x1p", self.spec("t5-small", 4, "speech", 5, max_steps=12_000), (("n5", 4),), 0.055, 0.2,
                 loss=4.912, samples_per_s=840.0, phase="evaluating")  # fmt: skip
        self.run("gpt-1b-long-context-c3d", self.spec("gpt-1b", 8, max_steps=60_000), (("n6", 8),), 0.93, 31.0, loss=2.0418,
                 tokens_per_s=182_000.0, restarts=1, state=JobState.RECOVERING, phase="recovering from step 55,500")  # fmt: skip
        self.run("moe-8x7b-probe-q9e", self.spec("gpt-moe-8x7b", 2, "speech", 5, max_steps=500), (("n7", 2),), 0.0, 0.01,
                 state=JobState.STARTING, phase="starting 2 workers")  # fmt: skip
        self._put_queue()
        self._put_ended()
        return shown

    def _put_main_job(self) -> str:
        job_id = "gpt-7b-pretrain-01k"
        spec = self.spec("gpt-7b", 32, priority=10, max_steps=200_000)
        places = tuple((f"n{number}", 8) for number in range(4))
        self.run(job_id, spec, places, 0.412, 76.0, loss=2.3185, val_loss=2.3511, tokens_per_s=412_000.0, restarts=2, preemptions=1,
                 epoch=4, best_step=80_000, best_value=2.3511, mlflow_run_id=RUN_ID)  # fmt: skip
        for hours, kind, message, fields in _EVENTS:
            event = Event(kind=kind, job_id=job_id, time_s=self.now - hours * HOUR_S, message=message, fields=fields)
            self.store.tell_waiting([], [event])
        draw = random.Random(7)
        losses = {step: _loss(step) + draw.gauss(0, 0.02) for step in range(100, 82_100, 100)}
        rows = [{"kind": "metrics", "step": step, "values": {"loss": loss}} for step, loss in losses.items()]
        rows += [{"kind": "evaluated", "step": step, "values": {"loss": _loss(step) + 0.035}} for step in range(8000, 82_000, 8000)]
        self.put_journal(job_id, rows)
        for rank in (0, 1, 13, 31):
            offset = 0
            for step in range(82_310, 82_401, 10):
                told = f"step {step}  " + (f"grad norm {draw.uniform(0.3, 0.5):.3f}" if rank else f"loss {losses[82_000]:.3f}") + "\n"
                self.put_output(job_id, rank, offset, told, epoch=4)
                offset += len(told)
        return job_id

    def _put_queue(self) -> None:
        reasons = [
            "needs 16 GPUs on 2 nodes; 6 are free, more when resnet-101-sweep-7ab ends",
            "after llama-8b-finetune-r0 in the order; would need 8 GPUs, 6 are free",
            "the tenant language has 40 of its quota of 40 GPUs", "needs a whole node; 0 of 8 are free",
        ]  # fmt: skip
        self.wait("llama-8b-finetune-r0", self.spec("llama-8b", 16, "language", 10), 1, reasons[0], self.now + 52 * MINUTE_S,
                  reserved_s=self.now + 52 * MINUTE_S)  # fmt: skip
        tenants, models = ("vision", "language", "speech", "ops"), ("vit-base", "gpt-350m", "t5-base", "bert-large")
        for number in range(1, 68):
            tenant, model = tenants[number % 4], models[number % 4]
            start_s = self.now + (52 + 37 * number) * MINUTE_S if number < 40 else None
            spec = self.spec(model, (8, 1, 4, 2)[number % 4], tenant, 5 if number < 9 else 0)
            self.wait(f"{model}-{'abcdefgh'[number % 8]}{number:02d}", spec, number + 1, reasons[1 + number % 3], start_s,
                      user=("kim", "ann", "lee", "ops")[number % 4], queued_s=self.now - (400 - 5 * number) * MINUTE_S)  # fmt: skip
        self.wait("eval-after-pretrain-z9", self.spec("gpt-7b", 8), 0, "waits for gpt-7b-pretrain-01k, which runs")

    def _put_ended(self) -> None:
        for job_id, state, reason, share, ago_h in _ENDED:
            spec = self.spec("bert-large", 4, "language")
            result = JobResult(end_reason=EndReason.COMPLETED, message=reason, mlflow_run_id=RUN_ID)
            job = self.run(job_id, spec, (), share, ago_h + 2, loss=1.9 + share, state=JobState.RUNNING)
            self.store.update(job, state=state, ended_s=self.now - ago_h * HOUR_S, reason=reason, result=result)


def _loss(step: int) -> float:
    return 2.2 + 8.4 * math.exp(-((step / 900) ** 0.45))
