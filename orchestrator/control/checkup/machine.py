"""Disk, shared memory, network and limits of this machine."""

from __future__ import annotations

import resource
import shutil
import socket
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil

from orchestrator.control.checkup.finding import Finding, Level, Subject, ok, problem, warning

LITTLE_BYTES, LEAST_BYTES = 10_000_000_000, 1_000_000_000
SHARED_SHARE = 0.1
"""Of the machine's memory that shared memory must be able to hold to be used for what is saved (`supervision.agent.memory_folder`)."""
FEW_FILES = 4096
FEW_PORTS = 10_000
SHARED_MEMORY = Path("/dev/shm")
PORT_RANGE = Path("/proc/sys/net/ipv4/ip_local_port_range")

Free = Callable[[Path], int]


def _free(path: Path) -> int:
    return shutil.disk_usage(path).free


def check_disk(subject: Subject, free: Free = _free) -> Iterator[Finding]:
    """Of the home, and of the folder for temporary files, where Ray keeps its own."""
    for what, folder in (("home", subject.home.root), ("temporary folder", Path(tempfile.gettempdir()))):
        there = next(path for path in (folder, *folder.parents) if path.exists())
        left = free(there)
        message = f"{what} {folder}: {left / 1e9:.1f} GB free"
        fix = (
            f"free some space: du -xsh {there}/* | sort -h | tail"
            if what != "home"
            else "orchestrator checkpoint gc JOB, or give another cluster.home"
        )
        yield problem(message, fix) if left < LEAST_BYTES else warning(message, fix) if left < LITTLE_BYTES else ok(message)


def check_shared_memory(subject: Subject, shared: Path = SHARED_MEMORY, size: Callable[[Path], int] | None = None) -> Iterator[Finding]:
    fix = "docker run --shm-size=50%-of-memory ..., or: sudo mount -o remount,size=50% /dev/shm"
    if not shared.is_dir():
        yield warning(f"{shared} is not there: what is saved passes through the disk", fix)
        return
    total, memory = size(shared) if size else shutil.disk_usage(shared).total, psutil.virtual_memory().total
    if total < SHARED_SHARE * memory:
        yield warning(f"{shared} has {total / 1e9:.2f} GB, less than a tenth of the memory: what is saved passes through the disk", fix)
    else:
        yield ok(f"{shared} holds up to {total / 1e9:.1f} GB of {memory / 1e9:.1f} GB of memory")


def check_network(subject: Subject, resolve: Callable[[str], str] = socket.gethostbyname, ports: Path = PORT_RANGE) -> Iterator[Finding]:
    """Can processes of this machine reach each other?"""
    found = [_loopback(), _host_name(resolve), _ports(ports)]
    bad = [finding for finding in found if finding.level is not Level.OK]
    yield from bad or [ok("; ".join(finding.message for finding in found))]


def _loopback() -> Finding:
    try:
        with socket.create_server(("127.0.0.1", 0)) as server:
            socket.create_connection(server.getsockname(), timeout=5.0).close()
    except OSError as error:
        return problem(f"a process cannot connect to another at 127.0.0.1: {error}", "sudo ip link set lo up")
    return ok("127.0.0.1 answers")


def _host_name(resolve: Callable[[str], str]) -> Finding:
    name = socket.gethostname()
    try:
        return ok(f"this host is {name}, {resolve(name)}")
    except OSError as error:
        fix = f"echo '127.0.1.1 {name}' | sudo tee -a /etc/hosts"
        return warning(f"the name of this host, {name}, leads nowhere ({error}): ranks on several nodes may not find each other", fix)


def _ports(file: Path) -> Finding:
    """Ray takes some dozens for each node, and each job one."""
    try:
        low, high = map(int, file.read_text().split())
    except (OSError, ValueError):
        return ok("the range of free ports is not known")
    if high - low < FEW_PORTS:
        fix = "sudo sysctl -w net.ipv4.ip_local_port_range='32768 60999'"
        return warning(f"only {high - low} ports ({low} to {high}) are there for connections", fix)
    return ok(f"ports {low} to {high}")


def check_limits(subject: Subject, files: int | None = None) -> Iterator[Finding]:
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[0] if files is None else files
    if 0 <= most < FEW_FILES:
        yield warning(f"a process may open {most} files, which is little for a cluster of many workers", "ulimit -n 65536")
    else:
        yield ok(f"a process may open {'any number of' if most < 0 else most} files")
