"""The tracking writer against real MLflow: a SQLite file, and a server that goes away."""

from __future__ import annotations

import base64
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from patience import LIMIT_S, wait_until

from orchestrator.paths import Home, JobKeys
from orchestrator.ports import free_port
from orchestrator.spec import DataSpec, JobSpec, ModelSpec, StorageSpec, TrackingSpec, TrainingSpec, WorkloadSpec, to_dict
from orchestrator.storage import open_store
from orchestrator.tracking.delivery import load_delivered, state_path, tracking_uri
from orchestrator.tracking.journal import Journal
from orchestrator.tracking.mlflow_run import MlflowRun, TrackingUnavailable, delete_run
from orchestrator.tracking.redact import Redactor
from orchestrator.tracking.removal import delete_run_apart
from orchestrator.tracking.writer import ALL_DELIVERED, MLFLOW_ENVIRONMENT, SOMETHING_LEFT, Writer, drain

SECRET = "wJalrXUtnFEMI/K7MDENG+bPxRfiCY"
LAST_STEP = 3000


class Tracked:
    """A job with a journal, as the supervisor has it, and the means to deliver it and to look at what arrived."""

    def __init__(self, root: Path, uri: str = "", job_id: str = "gpt-1", home: Path | None = None) -> None:
        self.job_id = job_id
        self.home = Home(home or root / "home")
        options = {"note": f"key {SECRET}", "hub_token": "t"}
        self.spec = JobSpec(
            workload=WorkloadSpec(name="gpt", entrypoint="gpt:Gpt", options=options, code_dir=str(root)),
            model=ModelSpec(name="small", options={"depth": 2}),
            data=DataSpec(name="text", options={"long": "x" * 7000, "empty": ""}),
            training=TrainingSpec(max_steps=LAST_STEP, global_batch_size=8, micro_batch_size=4),
            storage=StorageSpec(url=f"file://{root}/store"),
            tracking=TrackingSpec(uri=uri, tags={"team": "red"}),
        )
        self.path = root / job_id / "journal.jsonl"
        self.keys = JobKeys(job_id)
        self.store = open_store(self.spec.storage)
        self.config = root / job_id / "tracking.json"
        self.journal = Journal(self.path, self.store, self.keys)
        self.config.write_text(json.dumps({"job_id": job_id, "spec": to_dict(self.spec), "home": str(self.home.root)}))

    def steps(self, first: int, last: int) -> None:
        for step in range(first, last + 1):
            self.journal.append("metrics", step=step, values={"loss": 1 / step, "lr": 0.1})

    def reopen(self) -> None:
        self.journal.close()
        self.journal = Journal(self.path, self.store, self.keys)

    def deliver(self) -> int:
        """In this process: deliver what is there, without waiting for more."""
        run = MlflowRun(self.spec, self.job_id, self.home, Redactor({"AWS_SECRET_ACCESS_KEY": SECRET}))
        stop = threading.Event()
        stop.set()
        return drain(Writer(self.path, run, self.keys, lambda: open_store(self.spec.storage)), stop)

    def start(self) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "orchestrator.tracking.writer", "--journal", str(self.path), "--config", str(self.config)]
        return subprocess.Popen(command, env={**os.environ, "AWS_SECRET_ACCESS_KEY": SECRET})

    @property
    def client(self) -> Any:
        from mlflow import MlflowClient

        return MlflowClient(tracking_uri=tracking_uri(self.spec.tracking, self.home))

    def run(self) -> Any:
        """The one run of the job; there must not be another."""
        experiment = self.client.get_experiment_by_name("orchestrator").experiment_id
        (run,) = self.client.search_runs([experiment], f"tags.`orchestrator.job_id` = '{self.job_id}'")
        return run

    def curve(self, name: str = "loss") -> list[tuple[int, float]]:
        """Everything that was stored under the name: what is there twice shows."""
        return sorted((point.step, point.value) for point in self.client.get_metric_history(self.run().info.run_id, name))


def calm(last: int) -> list[tuple[int, float]]:
    return [(step, 1 / step) for step in range(1, last + 1)]


@pytest.fixture(scope="module", autouse=True)
def quick_mlflow() -> Iterator[None]:
    patch = pytest.MonkeyPatch()
    for name, value in MLFLOW_ENVIRONMENT.items():
        patch.setenv(name, value)
    yield
    patch.undo()


@pytest.fixture(scope="module")
def migrated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty MLflow database: making one takes MLflow seconds."""
    from mlflow import MlflowClient

    path = tmp_path_factory.mktemp("migrated") / "mlflow.db"
    MlflowClient(tracking_uri=f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture
def job(tmp_path: Path, migrated: Path) -> Tracked:
    job = Tracked(tmp_path)
    job.home.mlflow.mkdir(parents=True)
    shutil.copy(migrated, job.home.mlflow / "mlflow.db")
    return job


@pytest.fixture
def ended() -> Iterator[list[subprocess.Popen[bytes]]]:
    """Processes that must be gone after the test."""
    processes: list[subprocess.Popen[bytes]] = []
    yield processes
    for process in processes:
        process.kill()
        process.wait()


def test_one_run_shows_the_whole_job(job: Tracked) -> None:
    job.store.put(job.keys.artifact("sample.txt"), b"def main():")
    job.journal.append("evaluated", step=0, values={"loss": 5.0, "perplexity": 148.0})
    job.steps(1, 20)
    job.journal.append("event", event="committed", message="step 20")
    job.journal.append("artifact", name="sample.txt")
    job.journal.append("artifact", name="never-written.txt")
    job.journal.append("params", values={"layout.dp": 2})
    job.journal.append("tags", values={"warning": f"denied for {SECRET}"})
    job.journal.append("end", status="FINISHED", end_reason="COMPLETED", restarts=2, time_s=1700000000.0)
    assert job.deliver() == ALL_DELIVERED

    run = job.run()
    assert (run.info.status, run.info.run_name, run.info.end_time) == ("FINISHED", "gpt-1", 1700000000000)
    assert run.info.run_id == load_delivered(job.path).mlflow_run_id
    assert job.curve() == calm(20)
    assert job.curve("val_perplexity") == [(0, 148.0)]
    params = run.data.params
    assert (params["training.max_steps"], params["model.options.depth"], params["layout.dp"]) == (str(LAST_STEP), "2", "2")
    assert (len(params["data.options.long"]), params["data.options.empty"]) == (6000, "")
    assert (params["workload.options.note"], params["workload.options.hub_token"]) == ("key ***", "***")
    tags = run.data.tags
    assert (tags["team"], tags["orchestrator.end_reason"], tags["orchestrator.restarts"]) == ("red", "COMPLETED", "2")
    assert tags["event.committed"].endswith("step 20")
    assert tags["warning"] == "denied for ***"
    assert {"version.orchestrator", "version.ray", "version.torch", "version.deepspeed"} <= set(tags)
    assert [artifact.path for artifact in job.client.list_artifacts(run.info.run_id)] == ["sample.txt"]
    assert next((job.home.mlflow / "artifacts").rglob("sample.txt")).read_bytes() == b"def main():"
    assert SECRET.encode() not in (job.home.mlflow / "mlflow.db").read_bytes()


def test_a_finished_jobs_checkpoint_is_a_version_of_a_model_once(job: Tracked) -> None:
    source = f"file://{job.home.root}/store/jobs/{job.job_id}/ckpt/000000000010-00000001-u/"
    for _ in range(2):  # a resumed job ends again
        job.journal.append("model", name="rates", source=source, step=10, job_id=job.job_id)
    job.journal.append("model", name="rates", source=source.replace("010", "020"), step=20, job_id=job.job_id)
    job.journal.append("end", status="FINISHED")
    assert job.deliver() == ALL_DELIVERED
    versions = sorted(job.client.search_model_versions("name = 'rates'"), key=lambda found: int(found.version))
    assert [found.source for found in versions] == [source, source.replace("010", "020")]
    assert versions[0].run_id == load_delivered(job.path).mlflow_run_id
    assert versions[0].tags == {"orchestrator.job_id": job.job_id, "orchestrator.step": "10"}


def test_a_resumed_job_goes_on_in_its_run_and_replays_nothing(job: Tracked) -> None:
    job.steps(1, 30)
    job.journal.append("end", status="KILLED", end_reason="CANCELLED")
    assert job.deliver() == ALL_DELIVERED
    assert job.run().info.status == "KILLED"

    job.reopen()
    assert job.deliver() == SOMETHING_LEFT
    assert job.run().info.status == "RUNNING"
    for _ in range(2):
        job.journal.rewind(20)
        job.steps(21, 35)
    job.journal.append("end", status="FINISHED")
    assert job.deliver() == ALL_DELIVERED
    assert job.curve() == calm(35)
    assert (job.run().info.status, job.run().data.tags["rewinds"]) == ("FINISHED", "2")


def test_changed_settings_of_a_resumed_job_become_tags(job: Tracked) -> None:
    job.steps(1, 2)
    job.deliver()
    job.spec = JobSpec(**{**vars(job.spec), "training": TrainingSpec(max_steps=9, global_batch_size=8, micro_batch_size=4)})
    job.deliver()
    assert job.run().data.params["training.max_steps"] == str(LAST_STEP)
    assert job.run().data.tags["changed.training.max_steps"] == "9"


@pytest.mark.parametrize("lost", ["state", "journal tail"])
def test_delivering_again_from_the_start_changes_nothing(job: Tracked, lost: str) -> None:
    job.steps(1, 30)
    job.journal.ship()
    job.steps(31, 40)
    job.deliver()
    if lost == "state":
        state_path(job.path).unlink()
    else:  # the machine lost power: what was not synced is gone, and other records take its numbers
        job.path.unlink()
        job.reopen()
        job.journal.rewind(30)
        job.steps(31, 40)
    job.steps(41, 50)
    job.journal.append("end", status="FINISHED")
    assert job.deliver() == ALL_DELIVERED
    assert job.curve() == calm(50)


def test_a_run_that_somebody_deleted_is_written_anew(job: Tracked) -> None:
    job.steps(1, 10)
    job.deliver()
    first = job.run().info.run_id
    job.client.delete_run(first)
    job.steps(11, 20)
    job.journal.append("end", status="FINISHED")
    assert job.deliver() == ALL_DELIVERED
    assert job.run().info.run_id != first
    assert job.curve() == calm(20)


def test_what_mlflow_refuses_holds_up_nothing(job: Tracked) -> None:
    job.steps(1, 3)
    job.journal.append("metrics", step=4, values={"loss": 1.0}, time_s=-1.0)
    job.steps(5, 6)
    job.journal.append("tags", values={"after": "here"})
    job.journal.append("end", status="FAILED")
    assert job.deliver() == ALL_DELIVERED
    assert (job.run().info.status, job.run().data.tags["after"]) == ("FAILED", "here")
    assert [step for step, _ in job.curve()] == [1, 2, 3, 5, 6]


def test_kills_of_the_writer_lose_nothing_and_store_nothing_twice(job: Tracked, ended: list[subprocess.Popen[bytes]]) -> None:
    """SIGKILL right after something was delivered, before or after the writer noted it; the journal grows all the while."""
    delivered = 0
    for first in range(1, LAST_STEP, 1000):
        ended.append(job.start())
        job.steps(first, first + 999)
        if first > 1:
            job.journal.rewind(first - 1)
        wait_until(lambda seen=delivered: load_delivered(job.path).last_seq > seen, "a delivery")  # type: ignore[misc]
        ended[-1].kill()
        ended[-1].wait()
        delivered = load_delivered(job.path).last_seq
    job.journal.append("end", status="FINISHED")
    ended.append(job.start())
    assert ended[-1].wait(LIMIT_S) == ALL_DELIVERED
    assert job.curve() == calm(LAST_STEP)


def test_two_writers_start_at_once_where_no_database_is(tmp_path: Path, ended: list[subprocess.Popen[bytes]]) -> None:
    jobs = [Tracked(tmp_path, job_id=name, home=tmp_path / "home") for name in ("one", "two")]
    for job in jobs:
        job.steps(1, 5)
        job.journal.append("end", status="FINISHED")
        ended.append(job.start())
    assert [process.wait(LIMIT_S) for process in ended] == [ALL_DELIVERED] * 2
    assert [job.curve() for job in jobs] == [calm(5)] * 2


def test_the_writer_of_a_dead_supervisor_makes_a_last_try_and_leaves(job: Tracked) -> None:
    """The next writer of the job waits for it: two at once would overwrite each other's state."""
    job.steps(1, 5)
    code = "import subprocess, sys, time; print(subprocess.Popen(sys.argv[1:]).pid, flush=True); time.sleep(600)"
    command = [sys.executable, "-m", "orchestrator.tracking.writer", "--journal", str(job.path), "--config", str(job.config)]
    parent = subprocess.Popen([sys.executable, "-c", code, *command], stdout=subprocess.PIPE)
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    try:
        wait_until(lambda: load_delivered(job.path).last_seq == 5, "the first delivery")
        job.steps(6, 7)
    finally:
        parent.kill()
        parent.wait()
    wait_until(lambda: not alive(pid), "the writer to leave")
    assert load_delivered(job.path).last_seq == 7
    assert job.curve() == calm(7)


def alive(pid: int) -> bool:
    """Whether the process runs; a zombie that nobody has waited for yet does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def start_server(port: int, home: Path) -> subprocess.Popen[bytes]:
    command = [
        sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1",
        "--backend-store-uri", f"sqlite:///{home}/server.db", "--artifacts-destination", str(home / "artifacts"),
    ]  # fmt: skip
    environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    silent = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    return subprocess.Popen(command, env=environment, start_new_session=True, cwd=home, **silent)


def stop_server(server: subprocess.Popen[bytes]) -> None:
    """All at once, without a goodbye: the processes of the session that `start_server` made."""
    os.killpg(server.pid, signal.SIGKILL)
    server.wait()


def answers(port: int) -> bool:
    try:
        return bool(urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=20).status == 200)
    except (urllib.error.URLError, OSError):
        return False


@pytest.mark.slow
def test_a_server_that_goes_away_only_delays(tmp_path: Path, migrated: Path, ended: list[subprocess.Popen[bytes]]) -> None:
    shutil.copy(migrated, tmp_path / "server.db")
    port = free_port()
    server = start_server(port, tmp_path)
    try:
        job = Tracked(tmp_path, uri=f"http://127.0.0.1:{port}")
        job.store.put(job.keys.artifact("sample.txt"), b"def main():")
        ended.append(job.start())
        job.steps(1, 50)
        wait_until(lambda: answers(port), "the server")
        wait_until(lambda: load_delivered(job.path).last_seq == 50, "the first delivery")
        stop_server(server)
        job.steps(51, 1200)
        job.journal.append("artifact", name="sample.txt")
        job.journal.append("end", status="FINISHED")
        assert ended[-1].poll() is None
        server = start_server(port, tmp_path)
        wait_until(lambda: answers(port), "the server, again")
        assert ended[-1].wait(LIMIT_S) == ALL_DELIVERED
        assert job.curve() == calm(1200)
        assert job.run().info.status == "FINISHED"
        assert [artifact.path for artifact in job.client.list_artifacts(job.run().info.run_id)] == ["sample.txt"]
    finally:
        stop_server(server)


def test_a_writer_without_a_server_ends_when_told(tmp_path: Path, ended: list[subprocess.Popen[bytes]]) -> None:
    job = Tracked(tmp_path, uri=f"http://127.0.0.1:{free_port()}")
    job.steps(1, 3)
    job.journal.append("end", status="FINISHED")
    ended.append(job.start())
    wait_until(lambda: job.path.with_name("journal.jsonl.lock").exists(), "the writer")
    ended[-1].terminate()
    assert ended[-1].wait(LIMIT_S) == SOMETHING_LEFT
    assert load_delivered(job.path).last_seq == 0


def test_a_run_is_deleted_once_and_for_all(job: Tracked):
    job.steps(1, 3)
    job.deliver()
    uri, run_id = tracking_uri(job.spec.tracking, job.home), job.run().info.run_id
    delete_run_apart(uri, run_id, {})
    assert job.client.get_run(run_id).info.lifecycle_stage == "deleted"
    for gone in (run_id, "f" * 32):
        delete_run(uri, gone)
    with pytest.raises(TrackingUnavailable, match=r"MLflow: .*127\.0\.0\.1"):
        delete_run("http://127.0.0.1:9", run_id)


def test_a_run_that_cannot_be_deleted_is_told_by_the_process_that_tried():
    with pytest.raises(TrackingUnavailable, match=r"the run f00d is not deleted: MLflow: .*127\.0\.0\.1"):
        delete_run_apart("http://127.0.0.1:9", "f00d", {})


def test_who_deletes_a_run_shows_the_jobs_password_to_mlflow_and_nothing_else_of_its_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str | None] = []

    class Server(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            seen.append(self.headers["Authorization"])
            self.send_response(404)
            self.end_headers()
            self.wfile.write(b'{"error_code": "RESOURCE_DOES_NOT_EXIST", "message": "gone"}')

    for name in ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    secrets = {"MLFLOW_TRACKING_USERNAME": "ann", "MLFLOW_TRACKING_PASSWORD": SECRET, "PYTHONHOME": "/nowhere"}
    server = HTTPServer(("127.0.0.1", 0), Server)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    delete_run_apart(f"http://127.0.0.1:{server.server_port}", "f00d", secrets)
    server.shutdown()
    thread.join()
    server.server_close()
    assert seen == ["Basic " + base64.b64encode(f"ann:{SECRET}".encode()).decode()]
