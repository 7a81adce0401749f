"""Drives the real command line, cluster and processes for the end-to-end and fault tests and for the campaigns."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import psutil
from patience import LIMIT_S, TRAINING_LIMIT_S

from orchestrator.control.client import Client
from orchestrator.job import Job
from orchestrator.paths import Home, JobKeys
from orchestrator.storage import ObjectStore, open_store
from orchestrator.supervision.accounting import Bucket
from orchestrator.supervision.ledger import Ledger, as_of

TESTS = Path(__file__).parent
TINY = (
    "workload=custom", "workload.entrypoint=tiny_workload:Tiny", "name=tiny", "data.name=tiny", "model.name=tiny",
    "training.max_steps=120", "training.global_batch_size=24", "training.micro_batch_size=4", "optimizer.lr=0.01",
    "checkpoint.interval_steps=20", "resources.num_workers=2", "resources.cpus_per_worker=0.5", "tracking.enabled=false",
    "cluster.idle_timeout_s=600", "recovery.backoff_s=0.1", "recovery.hang_timeout_s=60", "recovery.preemption_grace_s=300",
)  # fmt: skip
"""Where others run beside it, a rank gets no turn for seconds and a save takes many: tests of hangs have a limit of their own."""
ENDLESS = "training.max_steps=100000"
"""For a job that is stopped."""
MICRO_BATCHES = 3
"""Of the tiny workload on two workers in a step."""
DETERMINISTIC = ("loss", "lr", "grad_norm", "ids_crc")


def held(until: Path, steps: int) -> tuple[str, ...]:
    """Two workers stand still behind that many steps of each of their lives, until there is the file `until`."""
    return (f"+workload.options.waits_for={until}", f"+workload.options.quick={steps * MICRO_BATCHES}", "recovery.hang_timeout_s=0")


def slowed(until: Path, steps: int = 0) -> tuple[str, ...]:
    """A step of two workers takes more than half a second behind that many of each of their lives, until there is the file `until`."""
    return (f"+workload.options.slow_until={until}", f"+workload.options.quick={steps * MICRO_BATCHES}")


class Sandbox:
    """A home of its own; everything that is started in it is ended by `close`."""

    def __init__(self) -> None:
        self.root = Path(tempfile.mkdtemp(prefix="orc-"))
        self.folder = TESTS
        """From where commands are given."""
        self.home = Home(self.root / "home")
        self.environment = {**os.environ, "ORCHESTRATOR_HOME": str(self.home.root), "OMP_NUM_THREADS": "1"}
        self.environment.pop("RAY_ADDRESS", None)

    def start(self, *arguments: str, **options: Any) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "orchestrator.cli", *arguments]
        pipe = subprocess.PIPE
        return subprocess.Popen(
            command, cwd=self.folder, env=self.environment, stdout=pipe, stderr=subprocess.STDOUT, text=True, start_new_session=True,
            preexec_fn=_hear_ctrl_c, **options,
        )  # fmt: skip

    def run(self, *arguments: str, timeout_s: float = TRAINING_LIMIT_S) -> tuple[int, str]:
        """Exit code and output of a command."""
        process = self.start(*arguments)
        output, _ = process.communicate(timeout=timeout_s)
        return process.returncode, output

    def submit(self, *overrides: str) -> str:
        """The id of a new job."""
        known = {job.id for job in self.jobs()}
        code, output = self.run("submit", *overrides)
        assert code == 0, output
        return next(job.id for job in self.jobs() if job.id not in known)

    @property
    def client(self) -> Client:
        return Client(self.home)

    def jobs(self) -> list[Job]:
        return self.client.jobs() if self.home.jobs_db.exists() else []

    def job(self, job_id: str) -> Job:
        return self.client.job(job_id)

    def wait_until(self, condition: Callable[[], Any], what: str, timeout_s: float = LIMIT_S) -> Any:
        limit = time.monotonic() + timeout_s
        while time.monotonic() < limit:
            value = condition()
            if value:
                return value
            time.sleep(0.02)
        raise AssertionError(f"not within {timeout_s} s: {what}\n{self.describe()}")

    def wait_ended(self, job_id: str, timeout_s: float = TRAINING_LIMIT_S) -> Job:
        def ended() -> Job | None:
            job = self.job(job_id)
            return job if job.state.terminal else None

        return self.wait_until(ended, f"the end of {job_id}", timeout_s)

    def wait_step(self, job_id: str, step: int) -> None:
        self.wait_until(lambda: self.job(job_id).progress.step >= step or self.job(job_id).state.terminal, f"step {step} of {job_id}")

    def describe(self) -> str:
        lines = [f"{job.id} {job.state.value} {job.reason} {job.progress}" for job in self.jobs()]
        for log in sorted((self.home.root / "logs").glob("*.log")):
            lines += [f"--- {log.name}", *log.read_text(errors="replace").splitlines()[-15:]]
        return "\n".join(lines)

    # what a job leaves behind

    def store(self, job_id: str) -> ObjectStore:
        return open_store(self.job(job_id).spec.storage)

    def ledger(self, job_id: str) -> Ledger:
        """The goodput of a job that has ended and was never resumed after an end; the ledger must close over all its time."""
        job = self.job(job_id)
        ledger = as_of(job, now_s=0.0)
        assert ledger is not None and job.ended_s is not None
        asked = (job.ended_s - job.submitted_s) * job.spec.resources.num_workers
        found = {bucket.value: round(passed, 3) for bucket, passed in ledger.seconds.items()}
        assert all(passed >= 0 for passed in ledger.seconds.values()), found
        assert abs(sum(ledger.seconds.values()) - asked) <= 0.001 * asked, (found, asked)
        assert ledger.seconds[Bucket.UNATTRIBUTED] <= 0.005 * asked, (found, asked)
        return ledger

    def history(self, job_id: str) -> list[dict[str, Any]]:
        """The deterministic part of the loss history: one row per step."""
        rows = json.loads(self.store(job_id).get(JobKeys(job_id).artifact("history.json")))
        return [{key: row[key] for key in ("step", *DETERMINISTIC)} for row in rows["history"]]

    def weights(self, job_id: str) -> dict[str, Any]:
        """Every tensor of the newest commit by (role, name), as arrays."""
        from orchestrator.checkpoints.commit import CommitLog
        from orchestrator.checkpoints.restore import export_tensors

        store = self.store(job_id)
        log = CommitLog(store, JobKeys(job_id))
        manifest = log.load_manifest(log.chain()[0])
        return {
            f"{role}:{name}": tensor
            for role in sorted({piece.role for piece in manifest.slices})
            for name, tensor in export_tensors(store, manifest, role).items()
        }

    def fingerprint(self, job_id: str) -> str:
        """A hash of all weights and optimizer state, bit for bit."""
        digest = hashlib.sha256()
        for name, tensor in sorted(self.weights(job_id).items()):
            digest.update(name.encode() + str(tensor.shape).encode() + tensor.tobytes())
        return digest.hexdigest()

    # processes

    def processes(self) -> list[psutil.Process]:
        """All that run for this home: marked by it in their environment."""
        mark = str(self.home.root)
        found = []
        for process in psutil.process_iter():
            try:
                if process.environ().get("ORCHESTRATOR_HOME") == mark and process.pid != os.getpid():
                    found.append(process)
            except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
                continue
        return found

    def having(self, text: str) -> list[psutil.Process]:
        return [process for process in self.processes() if text in _command(process)]

    def ranks(self) -> list[psutil.Process]:
        """Forked children of the warm processes."""
        return [child for warm in self.having("orchestrator.runtime.warm") for child in _children(warm)]

    def victims(self, kind: str) -> list[psutil.Process]:
        """Of jobs: not an actor that stands by for the next one."""
        found: dict[str, Callable[[], Iterable[psutil.Process]]] = {
            "rank": self.ranks,
            "agent": lambda: [parent for uploader in self.victims("uploader") if (parent := _parent(uploader)) is not None],
            "supervisor": lambda: [process for process in self.having("ray::Supervisor") if _has_open(process, "journal.jsonl")],
            "controller": lambda: self.having("orchestrator.control.serve"),
            "uploader": lambda: self.having("orchestrator.supervision.uploader"),
            "warm": lambda: [p for p in self.having("orchestrator.runtime.warm") if p not in self.ranks()],
        }
        return list(found[kind]())

    def kill_everything(self) -> None:
        """SIGKILL to every process of this home, as a power cut would."""
        for _ in range(20):
            living = self.processes()
            if not living:
                return
            for process in living:
                kill(process)
            psutil.wait_procs(living, timeout=2)

    def close(self) -> None:
        if self.home.cluster_file.exists():
            self.run("down")
        self.kill_everything()
        shutil.rmtree(self.root, ignore_errors=True)


def _hear_ctrl_c() -> None:
    """A shell that runs the tests in the background has told its children to ignore it."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def interrupt(process: subprocess.Popen[str]) -> None:
    """What a terminal does at Ctrl-C."""
    os.killpg(process.pid, signal.SIGINT)


def _command(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def _children(process: psutil.Process) -> list[psutil.Process]:
    try:
        return [child for child in process.children() if child.status() != psutil.STATUS_ZOMBIE]
    except psutil.Error:
        return []


def _parent(process: psutil.Process) -> psutil.Process | None:
    try:
        return process.parent()
    except psutil.Error:
        return None


def _has_open(process: psutil.Process, name: str) -> bool:
    try:
        return any(Path(file.path).name == name for file in process.open_files())
    except psutil.Error:
        return False


def kill(process: psutil.Process) -> None:
    """Also if it has gone by itself meanwhile, as what belongs to another that was killed."""
    try:
        process.kill()
    except psutil.NoSuchProcess:
        return
