"""Nodes of a Ray cluster on this machine: real raylets, each with a folder and ports of its own, known by its pid and ended by it."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any
from uuid import uuid4

import psutil
from harness import Sandbox, kill

from orchestrator.ports import free_port

END_LIMIT_S = 20.0
MAX_STARTS = 10


def raylet_command(folder: Path, resources: Mapping[str, int], host: str, *more: str) -> list[str]:
    return [
        sys.executable, "-m", "ray.scripts.scripts", "start", "--block", f"--num-cpus={resources['CPU']}",
        f"--num-gpus={resources.get('GPU', 0)}", f"--labels=host={host}", "--node-ip-address=127.0.0.1", "--object-store-memory=80000000",
        "--min-worker-port=0", "--max-worker-port=0", "--dashboard-agent-listen-port=0", f"--temp-dir={folder}", "--disable-usage-stats",
        *more,
    ]  # fmt: skip


def new_id() -> str:
    """56 hexadecimal digits, as Ray's own."""
    return (uuid4().hex + uuid4().hex)[:56]


def named(node_id: str) -> dict[str, str]:
    """What lets Ray know a node by that id."""
    return {"RAY_OVERRIDE_NODE_ID_FOR_TESTING": node_id}


class RayNodes:
    """A head with these `resources`, and the nodes that are added. Their processes bear the sandbox's mark."""

    def __init__(self, sandbox: Sandbox, resources: Mapping[str, int], environment: Mapping[str, str] | None = None) -> None:
        """`environment`: of the nodes, beyond that of the sandbox."""
        self.sandbox, self.folder = sandbox, sandbox.root
        self.address = f"127.0.0.1:{free_port()}"
        self._resources = resources
        self._environment = {"RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0", **(environment or {})}
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._starts = 0
        self.start_head()

    def start_head(self, node_id: str = "", more: Mapping[str, str] | None = None) -> str:
        """Also in place of one that was killed: at the same address, and with nothing of what the other one knew. Returns Ray's id."""
        where = ("--head", f"--port={self.address.rpartition(':')[2]}", "--include-dashboard=false", "--no-monitor")
        return self._start_node(node_id, self._resources, "head", where, more or {})

    def add(self, resources: Mapping[str, int]) -> str:
        """Ray's id of the new node, when it is there."""
        return self._start_node("", resources, f"host{len(self._processes)}", (f"--address={self.address}",), {})

    def _start_node(self, node_id: str, resources: Mapping[str, int], host: str, where: Iterable[str], more: Mapping[str, str]) -> str:
        """Again, if it does not register within the half minute that Ray itself gives a node."""
        for _ in range(MAX_STARTS):
            known, name = node_id or new_id(), f"{host}-{self._starts}"
            self._starts += 1
            process = self.start(name, raylet_command(self.folder / name, resources, host, *where), {**named(known), **more})
            if self.sandbox.wait_until(partial(self._look, process, known), f"node {name}") == "there":
                self._processes[known] = process
                return known
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # what it had started
        raise AssertionError((self.folder / f"{name}.log").read_text()[-4000:])

    def _look(self, process: subprocess.Popen[bytes], node_id: str) -> str:
        """Empty: it starts."""
        return "ended" if process.poll() is not None else "there" if node_id in self._answer() else ""

    def start(self, name: str, command: list[str], more: Mapping[str, str]) -> subprocess.Popen[bytes]:
        environment = {**self.sandbox.environment, **self._environment, **more}
        with (self.folder / f"{name}.log").open("wb") as log:
            return subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)

    def nodes(self) -> dict[str, Any]:
        """Those that live, by Ray's id. The head is one of them, and must live."""
        found: dict[str, Any] = self.sandbox.wait_until(self._answer, "an answer of the head")
        return found

    def _answer(self) -> dict[str, Any]:
        """Nothing, if none comes in time."""
        from ray._raylet import GcsClient

        try:
            found = GcsClient(address=self.address).get_all_node_info(timeout=5.0)
        except Exception:  # noqa: BLE001 - it is not up yet
            return {}
        return {node_id.hex(): info for node_id, info in found.items() if info.state == 0}

    def workers(self) -> list[str]:
        return [node_id for node_id, info in self.nodes().items() if not info.is_head_node]

    def processes(self, node_id: str) -> list[psutil.Process]:
        """`ray start`, Ray's servers below it, and what runs on the node; nothing once `ray start` has ended."""
        if self._processes[node_id].poll() is not None:
            return []
        try:
            root = psutil.Process(self._processes[node_id].pid)
            return [root, *root.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    def power_off(self, node_id: str) -> None:
        """SIGKILL to all that runs on it."""
        for process in self.processes(node_id):
            kill(process)

    def close(self) -> None:
        end([process.pid for process in self._processes.values()])


def end(pids: Iterable[int]) -> None:
    processes = []
    for pid in pids:
        try:
            processes.append(psutil.Process(pid))
            processes[-1].terminate()
        except psutil.NoSuchProcess:
            continue
    psutil.wait_procs(processes, timeout=END_LIMIT_S)
