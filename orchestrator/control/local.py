"""Find or start the control plane, and stop it. `python -m orchestrator.control.local` is the keeper of a local cluster."""

from __future__ import annotations

import math
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import psutil

from orchestrator.control.environment import remote_environment
from orchestrator.control.file_locks import exclusive
from orchestrator.control.keeper import ClusterFile, clean_up, main
from orchestrator.control.lock import Holder, cluster_lock, holder
from orchestrator.control.log_files import open_log
from orchestrator.control.processes import is_same, wait_until
from orchestrator.errors import ClusterError
from orchestrator.paths import Home, make_private
from orchestrator.spec import ClusterSpec

START_LIMIT_S = 120.0
STOP_LIMIT_S = 45.0
_LOG_LINES = 15

Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class LocalCluster:
    """A cluster with a living controller."""

    address: str
    started: bool
    """This call started it. If not, others may use it: who stops it would stop their jobs."""


def ensure_cluster(home: Home, cluster: ClusterSpec, say: Say) -> LocalCluster:
    """The cluster that `cluster` names, or the home's local one, started if there is none.

    Two commands at the same moment start one. What a killed cluster left is removed first. `say` hears what takes long.
    Raises ClusterError with the end of the logs.
    """
    if cluster.address:
        return ensure_controller(home, cluster, say)
    with exclusive(cluster_lock(home), lambda: say("waiting for another command that starts or stops the cluster")):
        file = ClusterFile.read(home)
        if file is not None and file.alive and not file.stopping:
            home.cluster_file.touch()  # its idle time begins anew
            _wait_ready(home, file.address, file.keeper_pid, say)
            return LocalCluster(address=file.address, started=False)
        _remove_remains(home, file, say)
        say("starting a local Ray cluster (5-10 s)")
        keeper = _start_keeper(home, cluster)
        try:
            address = _wait_keeper(home, keeper)
            _wait_ready(home, address, keeper.pid, say)
        except KeyboardInterrupt:
            _remove_remains(home, ClusterFile.read(home), say)
            raise
        final = ClusterFile.read(home)
        return LocalCluster(address=final.address if final else address, started=True)


def cluster_here(home: Home, asked: ClusterSpec) -> ClusterSpec:
    """The cluster that a job of `home` goes on with where it asked for `asked` long ago: the one that is controlled now, else that of
    $RAY_ADDRESS if it was given an address, which may be gone."""
    file, found = ClusterFile.read(home), holder(home)
    if file is not None and file.alive:
        return replace(asked, address="")
    address = found.address if found is not None else asked.address and os.environ.get("RAY_ADDRESS", "")
    return replace(asked, address=address or asked.address)


def ensure_controller(home: Home, cluster: ClusterSpec, say: Say) -> LocalCluster:
    """A controller on this machine for the Ray cluster at `cluster.address`. Raises ClusterError at once if nothing listens there."""
    address = cluster.address
    _check_listening(address)
    with exclusive(cluster_lock(home), lambda: say("waiting for another command that starts or stops the control plane")):
        found = holder(home)
        if found is not None:
            _check_same(home, found, address)
            return LocalCluster(address=address, started=False)
        say(f"starting the control plane of the cluster at {address}")
        command = [sys.executable, "-m", "orchestrator.control.serve", "--home", str(home.root), "--address", address]
        pid = _spawn(home, command, "controller", remote_environment(home, address)).pid
        _wait_ready(home, address, pid, say)
        return LocalCluster(address=address, started=False)


def service_command(home: Home, cluster: ClusterSpec, api: Sequence[str], say: Say) -> list[str]:
    """The program that serves until it is stopped: the controller of the cluster at `cluster.address` or, without one, the keeper of a
    local cluster. `api`: where it answers HTTP.

    Raises ClusterError if a controller of this home runs already. What a killed cluster left is removed.
    """
    if cluster.address:
        _check_listening(cluster.address)
    with exclusive(cluster_lock(home), lambda: say("waiting for another command that starts or stops the cluster")):
        file, found = ClusterFile.read(home), holder(home)
        if found is not None or (file is not None and file.alive):
            where = f" (pid {found.pid}, cluster at {found.address})" if found else ""
            raise ClusterError(f"a control plane of {home.root} runs already{where}: `orchestrator down` stops it.")
        if file is not None:
            _remove_remains(home, file, say)
    if cluster.address:
        return [sys.executable, "-m", "orchestrator.control.serve", "--home", str(home.root), "--address", cluster.address, *api]
    return [*_keeper_command(home, cluster, math.inf), *api]


def controller_alive(home: Home) -> bool:
    found = holder(home)
    return found is not None and found.ready


def stop_cluster(home: Home, say: Say = lambda _: None) -> bool:
    """End the home's local cluster, or its controller where the cluster is not ours. Waits until all is gone.

    Jobs that ran are left in the store and go on when a cluster is there again. Returns False if nothing ran.
    """
    if not home.root.exists():
        return False
    with exclusive(cluster_lock(home), lambda: say("waiting for another command that starts or stops the cluster")):
        file, found = ClusterFile.read(home), holder(home)
        if file is None and found is None:
            return False
        if file is not None:
            _remove_remains(home, file, say)
        elif found is not None:
            _end(found.pid, found.created)
        return True


def _start_keeper(home: Home, cluster: ClusterSpec) -> subprocess.Popen[bytes]:
    found = holder(home)
    if found is not None:
        raise ClusterError(
            f"the control plane of {home.root} serves the cluster at {found.address} (pid {found.pid}). "
            f"Give cluster.address={found.address}, or another cluster.home for a local cluster."
        )
    make_private(home.root)
    command = _keeper_command(home, cluster, cluster.idle_timeout_s)
    return _spawn(home, command, "keeper", {"ORCHESTRATOR_HOME": str(home.root)})


def _keeper_command(home: Home, cluster: ClusterSpec, idle_timeout_s: float) -> list[str]:
    return [
        sys.executable, "-m", "orchestrator.control.local", "--home", str(home.root), "--num-cpus", str(cluster.num_cpus),
        "--num-gpus", str(cluster.num_gpus), "--idle-timeout-s", str(idle_timeout_s),
    ]  # fmt: skip


def _spawn(home: Home, command: list[str], log: str, environment: dict[str, str]) -> subprocess.Popen[bytes]:
    """A process that outlives this one and its terminal."""
    with open_log(home, log) as output:
        return subprocess.Popen(
            command, env={**os.environ, **environment}, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
        )


def _wait_keeper(home: Home, keeper: subprocess.Popen[bytes]) -> str:
    """The address in the file that a new keeper writes first."""

    def written() -> bool:
        if keeper.poll() is not None:
            raise ClusterError(f"the keeper of the local cluster ended with code {keeper.returncode}{_log_tails(home)}")
        file = ClusterFile.read(home)
        return file is not None and file.keeper_pid == keeper.pid

    if not wait_until(written, START_LIMIT_S):
        raise ClusterError(f"the keeper of the local cluster did not start within {START_LIMIT_S:.0f} s{_log_tails(home)}")
    file = ClusterFile.read(home)
    assert file is not None, "it was just read"
    return file.address


def _wait_ready(home: Home, address: str, parent_pid: int, say: Say) -> None:
    """Until the controller of `address` is ready, as long as the process lives that is to bring it up."""
    began, told = time.monotonic(), False
    while not _is_ready(home, address):
        waited = time.monotonic() - began
        if not _runs(parent_pid):
            raise ClusterError(f"the cluster at {address} did not come up{_log_tails(home)}")
        if waited > START_LIMIT_S:
            raise ClusterError(f"the cluster at {address} was not ready within {START_LIMIT_S:.0f} s{_log_tails(home)}")
        if waited > 12 and not told:
            say(f"still waiting for Ray; its log is {home.log('ray')}")
            told = True
        file = ClusterFile.read(home)
        if file is not None and file.keeper_pid == parent_pid:
            address = file.address  # Ray was started once more, on another port
        time.sleep(0.05)


def _is_ready(home: Home, address: str) -> bool:
    found = holder(home)
    return found is not None and found.ready and found.address == address


def _runs(pid: int) -> bool:
    """A child of ours that ended is reaped by this look."""
    try:
        process = psutil.Process(pid)
        if process.status() != psutil.STATUS_ZOMBIE:
            return True
        if process.ppid() == os.getpid():
            os.waitpid(pid, os.WNOHANG)
    except (psutil.Error, ChildProcessError):
        return False
    return False


def _remove_remains(home: Home, file: ClusterFile | None, say: Say) -> None:
    """End the keeper if it lives, then whatever is left of its cluster."""
    if file is not None and file.alive:
        say("stopping the local cluster" if not file.stopping else "waiting for the local cluster to stop")
        _end(file.keeper_pid, file.keeper_created)
    elif file is not None:
        say("removing what a killed cluster left behind")
    clean_up(home, file)


def _end(pid: int, created: float) -> None:
    if is_same(pid, created):
        os.kill(pid, signal.SIGTERM)
    if not wait_until(lambda: not is_same(pid, created), STOP_LIMIT_S) and is_same(pid, created):
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: not is_same(pid, created), 5.0)


def _check_listening(address: str) -> None:
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        raise ClusterError(f"cluster.address={address} is no address: allowed is host:port of a Ray head, or empty for a local cluster.")
    try:
        socket.create_connection((host, int(port)), timeout=5.0).close()
    except OSError as error:
        raise ClusterError(f"cluster.address={address}: no Ray head answers there ({error}).") from error


def _check_same(home: Home, found: Holder, address: str) -> None:
    if found.address != address:
        raise ClusterError(
            f"the control plane of {home.root} serves the cluster at {found.address} (pid {found.pid}), not {address}. "
            "Give another cluster.home for another cluster."
        )
    if not wait_until(lambda: controller_alive(home), START_LIMIT_S):
        raise ClusterError(f"the control plane of {address} does not become ready{_log_tails(home)}")


def _log_tails(home: Home) -> str:
    parts = []
    for name in ("keeper", "ray", "controller"):
        path = home.log(name)
        if path.exists():
            lines = path.read_text(errors="replace").splitlines()[-_LOG_LINES:]
            parts += [f"--- {path}", *lines]
    return "\n" + "\n".join(parts) if parts else ""


if __name__ == "__main__":
    sys.exit(main())
