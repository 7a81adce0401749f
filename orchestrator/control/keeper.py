"""The keeper of a local cluster: parent of the Ray head and of the controller. It has the node's warm process started, too.

It runs in a session of its own, so that Ctrl-C in a terminal does not reach it. It brings the controller back when that dies, and
takes everything down when it is told to (SIGTERM), when Ray dies, or when the controller asks for it after an idle time.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any
from uuid import uuid4

from orchestrator.control.environment import ensure_token, local_environment
from orchestrator.control.lock import holder
from orchestrator.control.log_files import open_log
from orchestrator.control.processes import die_with_parent, end, is_same, marked, start_time
from orchestrator.paths import Home, write_private
from orchestrator.ports import free_port
from orchestrator.supervision import warm_client

OBJECT_STORE_BYTES = 100 * 1024 * 1024
MAX_STARTS = 3
"""Starts of Ray before giving up; a port that was free may be taken a moment later."""
TEMP_PREFIX = "orc-"
_STOP_GRACE_S = 8.0
_LONGEST_TEMP = 40
"""Characters; Unix sockets of Ray below it must stay under 107."""

log = logging.getLogger("keeper")


@dataclass(frozen=True, kw_only=True)
class ClusterFile:
    """What `cluster.json` says of the local cluster. Written by its keeper before anything else is started."""

    id: str
    address: str
    temp_dir: str
    keeper_pid: int
    keeper_created: float
    idle_timeout_s: float
    stopping: bool = False

    @property
    def alive(self) -> bool:
        return is_same(self.keeper_pid, self.keeper_created)

    @classmethod
    def read(cls, home: Home) -> ClusterFile | None:
        try:
            return cls(**json.loads(home.cluster_file.read_text()))
        except (FileNotFoundError, ValueError, TypeError):
            return None

    def write(self, home: Home) -> None:
        write_private(home.cluster_file, json.dumps(asdict(self)))


class Keeper:
    def __init__(self, home: Home, num_cpus: int, num_gpus: int, idle_timeout_s: float, controller: Sequence[str] = ()) -> None:
        """`controller`: further arguments of the controller's process."""
        self._home = home
        self._controller_arguments = controller
        self._num_cpus = num_cpus
        self._num_gpus = num_gpus
        self._file = _new_file(idle_timeout_s)
        self._ray: subprocess.Popen[bytes] | None = None
        self._controller: subprocess.Popen[bytes] | None = None
        self._starts = 0
        self._controller_started_s = 0.0
        self._backoff_s = 0.1
        self._told_to_stop = False

    def run(self) -> int:
        """Until told to stop. Returns the exit code: 0, or 1 if Ray died."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        ensure_token(self._home)
        try:
            self._start_ray()
            warm_client.start(self._home, os.getpid(), self._environment())  # its imports take as long as Ray's start: both at once
            self._start_controller()
            while not self._told_to_stop:
                if not self._check():
                    return 1
                time.sleep(0.05)
            return 0
        finally:
            self._take_down()

    def _on_signal(self, _number: int, _frame: Any) -> None:
        self._told_to_stop = True

    def _check(self) -> bool:
        """Look after both children. False if there is no going on."""
        assert self._ray is not None
        code = self._ray.poll()
        if code is not None:
            log.error("Ray ended with code %s, see %s", code, self._home.log("ray"))
            if self._was_ready() or self._starts >= MAX_STARTS:
                return False
            self._start_again()
        elif self._controller is None or self._controller.poll() is not None:
            self._revive_controller()
        return True

    def _was_ready(self) -> bool:
        found = holder(self._home)
        return found is not None and found.ready and found.address == self._file.address

    def _start_again(self) -> None:
        _stop([self._controller])
        self._file = replace(self._file, address=f"127.0.0.1:{free_port()}")
        self._start_ray()
        self._start_controller()

    def _start_ray(self) -> None:
        self._starts += 1
        self._file.write(self._home)
        command = head_command(self._file.address, self._file.temp_dir, self._num_cpus, self._num_gpus)
        self._ray = self._spawn(command, "ray", new_session=True)
        log.info("Ray starts at %s, pid %s, %s CPUs", self._file.address, self._ray.pid, self._num_cpus)

    def _start_controller(self) -> None:
        command = [
            sys.executable, "-m", "orchestrator.control.serve", "--home", str(self._home.root), "--address", self._file.address,
            "--idle-timeout-s", str(self._file.idle_timeout_s), "--wait-s", "120", *self._controller_arguments,
        ]  # fmt: skip
        self._controller = self._spawn(command, "controller", new_session=False)
        self._controller_started_s = time.monotonic()
        log.info("controller starts, pid %s", self._controller.pid)

    def _revive_controller(self) -> None:
        lived_s = time.monotonic() - self._controller_started_s
        if lived_s > 30:
            self._backoff_s = 0.1
        if self._controller is not None:
            log.warning("controller ended with code %s, starts again in %.1f s", self._controller.returncode, self._backoff_s)
            self._controller, self._controller_started_s = None, time.monotonic()
        elif lived_s >= self._backoff_s:
            self._backoff_s = min(10.0, self._backoff_s * 2)
            self._start_controller()

    def _spawn(self, command: list[str], name: str, new_session: bool) -> subprocess.Popen[bytes]:
        with open_log(self._home, name) as output:
            return subprocess.Popen(
                command, env=self._environment(), stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=new_session,
                preexec_fn=die_with_parent, cwd="/",
            )  # fmt: skip

    def _environment(self) -> dict[str, str]:
        return {**os.environ, **local_environment(self._home, self._file.address, self._file.id)}

    def _take_down(self) -> None:
        _stop([self._controller, self._ray])
        clean_up(self._home, self._file)
        log.info("all is down")


def _stop(children: Iterable[subprocess.Popen[bytes] | None]) -> None:
    """SIGTERM to all of them at once; SIGKILL to one that does not go in time."""
    living = [child for child in children if child is not None and child.poll() is None]
    for child in living:
        child.terminate()
    deadline = time.monotonic() + _STOP_GRACE_S
    for child in living:
        try:
            child.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


def head_command(address: str, temp_dir: str, num_cpus: int, num_gpus: int = -1) -> list[str]:
    """`ray start` of a head that stays in the foreground and shares no port and no folder with another. GPUs -1: what the machine has."""
    host, _, port = address.rpartition(":")
    command = [
        sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", "--port", port, f"--node-ip-address={host}",
        f"--temp-dir={temp_dir}", f"--num-cpus={num_cpus}", f"--object-store-memory={OBJECT_STORE_BYTES}",
        "--include-dashboard=false", "--include-log-monitor=false", "--no-monitor", "--disable-usage-stats",
        "--min-worker-port=0", "--max-worker-port=0", "--dashboard-agent-listen-port=0",
    ]  # fmt: skip
    if num_gpus >= 0:
        command.append(f"--num-gpus={num_gpus}")
    if importlib.util.find_spec("grpc"):  # Ray's client server starts only with it, and would take a well-known port
        command.append(f"--ray-client-server-port={free_port()}")
    return command


def clean_up(home: Home, file: ClusterFile | None) -> None:
    """End every process of the home's local clusters but this one, and remove what the cluster kept on this machine."""
    strays = marked(str(home.root))
    if strays:
        log.info("ends %s", [process.pid for process in strays])
    end(strays, grace_s=3.0)
    if file is not None and Path(file.temp_dir).name.startswith(TEMP_PREFIX):
        shutil.rmtree(file.temp_dir, ignore_errors=True)
    home.cluster_file.unlink(missing_ok=True)


def _new_file(idle_timeout_s: float) -> ClusterFile:
    created = start_time(os.getpid())
    assert created is not None, "this process lives"
    return ClusterFile(
        id=uuid4().hex, address=f"127.0.0.1:{free_port()}", temp_dir=_new_temp_dir(), keeper_pid=os.getpid(), keeper_created=created,
        idle_timeout_s=idle_timeout_s,
    )  # fmt: skip


def _new_temp_dir() -> str:
    parent = tempfile.gettempdir()
    return tempfile.mkdtemp(prefix=TEMP_PREFIX, dir=parent if len(parent) <= _LONGEST_TEMP else "/tmp")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m orchestrator.control.local", description="Keep a local cluster.")
    parser.add_argument("--home", required=True)
    parser.add_argument("--num-cpus", type=int, default=0)
    parser.add_argument("--num-gpus", type=int, default=-1)
    parser.add_argument("--idle-timeout-s", type=float, default=30.0)
    chosen, controller = parser.parse_known_args(arguments)
    logging.basicConfig(level=logging.INFO, format='{"time": "%(asctime)s", "part": "%(name)s", "message": "%(message)s"}')
    num_cpus = chosen.num_cpus or os.cpu_count() or 1
    return Keeper(Home(Path(chosen.home)), num_cpus, chosen.num_gpus, chosen.idle_timeout_s, controller).run()
