"""A real Ray cluster of one node and jobs of rank doubles on it, for tests of supervision."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from harness import kill
from patience import LIMIT_S, wait_until

from orchestrator.control.keeper import head_command
from orchestrator.errors import ClusterError
from orchestrator.job import JobResult, result_from_dict
from orchestrator.paths import Home, JobKeys
from orchestrator.ports import free_port
from orchestrator.spec import (
    CheckpointSpec,
    DataSpec,
    JobSpec,
    ModelSpec,
    RecoverySpec,
    ResourcesSpec,
    StorageSpec,
    TrackingSpec,
    TrainingSpec,
    WorkloadSpec,
)  # fmt: skip
from orchestrator.storage import ObjectStore, open_store
from orchestrator.supervision.accounting import Bucket
from orchestrator.supervision.ledger import Ledger

TESTS = Path(__file__).parent
ENTRY = "rank_double:main"
MARK = "SUPERVISION_BOX"
QUICK_HEALTH_CHECKS = {
    "RAY_health_check_initial_delay_ms": "1000", "RAY_health_check_period_ms": "500", "RAY_health_check_failure_threshold": "5",
}  # fmt: skip
"""Of a head, for its nodes: one that is gone refuses at once and is missed within seconds; one that is slow has Ray's usual time."""


def double_spec(
    url: str, *, max_steps: int = 40, workers: int = 2, recovery: RecoverySpec | None = None, upload_bytes_per_s: float = 0, **script: Any
) -> JobSpec:  # fmt: skip
    return JobSpec(
        workload=WorkloadSpec(name="double", entrypoint="rank_double:Double", options=script),
        model=ModelSpec(name="none"),
        data=DataSpec(name="none"),
        training=TrainingSpec(max_steps=max_steps, global_batch_size=4, micro_batch_size=1),
        resources=ResourcesSpec(num_workers=workers, cpus_per_worker=0.25),
        checkpoint=CheckpointSpec(interval_steps=10, keep_last=3, grace_minutes=0, max_upload_mb_per_s=upload_bytes_per_s / 1e6),
        storage=StorageSpec(url=url),
        tracking=TrackingSpec(enabled=False),
        recovery=recovery or RecoverySpec(backoff_s=0.05),
    )


class Box:
    def __init__(self) -> None:
        self.root = Path(tempfile.mkdtemp(prefix="sv-"))
        self.home = Home(self.root / "home")
        self.url = (self.root / "store").as_uri()
        self.jobs = 0
        self.address = f"127.0.0.1:{free_port()}"
        environment = {
            "RAY_AUTH_MODE": "disabled", "RAY_ADDRESS": self.address, "RAY_USAGE_STATS_ENABLED": "0", "OMP_NUM_THREADS": "1",
        }  # fmt: skip
        self._before = {name: os.environ.get(name) for name in environment}
        os.environ.update(environment)
        self.head = self._start_head()
        self._join()

    def _start_head(self) -> subprocess.Popen[bytes]:
        command = head_command(self.address, f"{self.root}/ray", num_cpus=4)
        environment = {**os.environ, **QUICK_HEALTH_CHECKS, "PYTHONPATH": str(TESTS), MARK: str(self.root)}
        environment.pop("RAY_ADDRESS")
        with (self.root / "head.log").open("wb") as log:
            return subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)

    def add_node(self) -> Node:
        """A second raylet; what starts on it is on another node for Ray, and shares this machine's memory."""
        import ray

        (head,) = (node["NodeID"] for node in ray.nodes())
        command = [
            sys.executable, "-m", "ray.scripts.scripts", "start", "--block", f"--address={self.address}", "--node-ip-address=127.0.0.1",
            f"--temp-dir={self.root}/ray2", "--num-cpus=2", "--object-store-memory=80000000", "--min-worker-port=0",
            "--max-worker-port=0", "--dashboard-agent-listen-port=0", "--include-log-monitor=false", "--disable-usage-stats",
        ]  # fmt: skip
        environment = {**os.environ, "PYTHONPATH": str(TESTS), MARK: str(self.root)}
        environment.pop("RAY_ADDRESS")
        with (self.root / "node.log").open("wb") as log:
            process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
        found = wait_until(lambda: [n["NodeID"] for n in ray.nodes() if n["Alive"] and n["NodeID"] != head], "the second node")
        # What is to run on the head runs here as long as this raylet has not heard of the head.
        wait_until(lambda: _sees(found[0], head), "the second node's view of the first")
        return Node(found[0], process)

    def _join(self) -> None:
        import ray

        from orchestrator.control.nodes.cluster import wait_for_ray  # imports Ray, which reads the environment

        try:
            wait_for_ray(self.address, limit_s=LIMIT_S)
        except ClusterError as error:
            raise AssertionError((self.root / "head.log").read_text()) from error
        ray.init(self.address, namespace="orchestrator", log_to_driver=False, logging_level="ERROR")

    def start(self, spec: JobSpec, job_id: str = "", run: int = 1, nodes: Sequence[str] = (), standby: Sequence[str] = ()) -> Job:
        """On the first node, or with one worker for each of `nodes` (Ray's ids); by the actors `standby`, if there are any."""
        import ray

        from orchestrator.supervision import place, supervisor

        if not job_id:
            self.jobs += 1
            job_id = f"job-{self.jobs}"
        node = ray.nodes()[0]["NodeID"]
        placement = [(one, 1) for one in nodes] or [(node, spec.resources.num_workers)]
        wait_until(lambda: place.reserve(job_id, spec, placement), "the place")
        ranks = [workers for _, workers in placement]
        handle = supervisor.start_supervisor(job_id, run, spec, self.home, ranks, ENTRY, standby=standby, limit_s=LIMIT_S)
        return Job(self, job_id, run, spec, handle, standby)

    def processes(self) -> list[psutil.Process]:
        found = []
        for process in psutil.process_iter():
            try:
                if process.environ().get(MARK) == str(self.root):
                    found.append(process)
            except psutil.Error:
                continue
        return found

    def having(self, text: str) -> list[psutil.Process]:
        return [process for process in self.processes() if text in command_of(process)]

    def warm(self) -> list[psutil.Process]:
        """The warm process itself; its ranks are forks with the same command."""
        found = self.having("orchestrator.runtime.warm")
        pids = {process.pid for process in found}
        return [process for process in found if process.ppid() not in pids]

    def close(self) -> None:
        import ray

        ray.shutdown()
        for name, value in self._before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value
        self.head.send_signal(signal.SIGTERM)
        try:
            self.head.wait(20)
        except subprocess.TimeoutExpired:
            self.head.kill()
        psutil.wait_procs(self.processes(), timeout=5)
        for process in self.processes():
            kill(process)
        shutil.rmtree(self.root, ignore_errors=True)


def _sees(node: str, other: str) -> bool:
    """Whether a task on `node` can start one on `other`."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    @ray.remote(num_cpus=0, max_retries=0)
    def on_other() -> bool:
        return True

    @ray.remote(num_cpus=0, max_retries=0)
    def on_node() -> bool:
        return bool(ray.get(on_other.options(scheduling_strategy=NodeAffinitySchedulingStrategy(other, soft=False)).remote()))

    there = NodeAffinitySchedulingStrategy(node, soft=False)
    try:
        return bool(ray.get(on_node.options(scheduling_strategy=there).remote(), timeout=20))  # then it is asked again
    except ray.exceptions.RayError:
        return False


@dataclass
class Node:
    id: str
    process: subprocess.Popen[bytes]
    """`ray start --block`, parent of the raylet."""

    def processes(self) -> list[psutil.Process]:
        """Of Ray, and what its actors have started."""
        root = psutil.Process(self.process.pid)
        return [root, *root.children(recursive=True)]

    def uploader(self) -> psutil.Process:
        return next(process for process in self.processes() if "orchestrator.supervision.uploader" in command_of(process))


class Job:
    def __init__(self, box: Box, job_id: str, run: int, spec: JobSpec, handle: Any, standby: Sequence[str] = ()) -> None:
        self.box = box
        self.id = job_id
        self.run = run
        self.spec = spec
        self.handle = handle
        self.standby = standby
        self.keys = JobKeys(job_id)

    @property
    def store(self) -> ObjectStore:
        return open_store(self.spec.storage)

    def status(self, after_event: int = 0) -> dict[str, Any]:
        """Also across a restart of the supervisor."""
        import ray

        limit = time.monotonic() + LIMIT_S
        while True:
            try:
                status: dict[str, Any] = ray.get(self.handle.status.remote(after_event), timeout=LIMIT_S)
                return status
            except ray.exceptions.ActorUnavailableError:
                if time.monotonic() > limit:
                    raise
                time.sleep(0.05)

    def events(self) -> list[str]:
        """Kinds of events over all lives of the supervisor, from the journal."""
        from orchestrator.tracking.journal import read_file

        records = read_file(self.box.home.node(self.id) / "journal.jsonl")
        return [record["event"] for record in records if record["kind"] == "event"]

    def ledger(self) -> Ledger:
        """Of the supervisor, which has ended; it must close."""
        ledger = Ledger.from_dict(self.status()["progress"]["ledger"])
        assert abs(sum(ledger.seconds.values()) - ledger.worker_s) < 1e-3, ledger
        assert ledger.seconds[Bucket.UNATTRIBUTED] <= 0.005 * ledger.worker_s, ledger
        return ledger

    def stop(self, mode: str) -> None:
        import ray

        ray.get(self.handle.stop.remote(mode), timeout=LIMIT_S)

    def preempt(self, grace_s: float) -> None:
        import ray

        ray.get(self.handle.preempt.remote("a test takes its place", time.time() + grace_s), timeout=LIMIT_S)

    def wait_ended(self) -> JobResult:
        wait_until(lambda: self.status()["ended"], f"the end of {self.id}")
        return result_from_dict(json.loads(self.store.get(self.keys.result(self.run))))

    def wait_step(self, step: int) -> None:
        wait_until(lambda: self.status()["progress"]["step"] >= step, f"step {step} of {self.id}")

    def ranks(self, bundle: int = 0) -> dict[int, int]:
        """Rank -> pid."""
        import ray

        agent = ray.get_actor(f"agent:{self.id}:{bundle}", namespace="orchestrator")
        pids: dict[int, int] = ray.get(agent.pids.remote(), timeout=LIMIT_S)
        return pids

    def history(self) -> list[tuple[int, float]]:
        rows = json.loads(self.store.get(self.keys.artifact("history.json")))["history"]
        return [(row["step"], row["loss"]) for row in rows]

    def log(self, epoch: int, rank: int) -> str:
        pieces = [self.store.get(info.key) for info in self.store.list(f"{self.keys.logs}{epoch:08d}/{rank:05d}/")]
        return b"".join(pieces).decode()

    def release(self) -> None:
        from orchestrator.supervision import place

        place.release(self.id, self.box.home, self.standby)


def calm_history(max_steps: int) -> list[tuple[int, float]]:
    """What every run must have, interrupted or not."""
    from rank_double import next_value

    rows, value = [], 1
    for step in range(1, max_steps + 1):
        value = next_value(value, step)
        rows.append((step, float(value)))
    return rows


def command_of(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""
