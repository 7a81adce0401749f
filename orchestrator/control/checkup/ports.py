"""The ports that a control plane here listens at where no others are named. Its local Ray cluster takes any that are free."""

from __future__ import annotations

import socket
from collections.abc import Iterator, Mapping

import psutil

from orchestrator.control.checkup.finding import Finding, Level, Subject, ok, warning
from orchestrator.control.lock import holder
from orchestrator.ports import API_PORT, DASHBOARD_PORT

WANTED = {"serve": API_PORT, "dashboard": DASHBOARD_PORT}


def check_ports(subject: Subject, wanted: Mapping[str, int] = WANTED) -> Iterator[Finding]:
    """`wanted`: verb -> port."""
    found = [_judged(subject, verb, port) for verb, port in wanted.items()]
    bad = [finding for finding in found if finding.level is not Level.OK]
    yield from bad or [ok("; ".join(finding.message for finding in found))]


def _judged(subject: Subject, verb: str, port: int) -> Finding:
    if _is_free(port):
        return ok(f"{port} is free for `orchestrator {verb}`")
    found, controller = _listener(port), holder(subject.home)
    if found is None:
        return _taken(verb, port, "a process that this user cannot see")
    pid, name, words = found
    if (controller is not None and pid == controller.pid) or (verb == "dashboard" and "mlflow" in words):
        return ok(f"{port} is that of `orchestrator {verb}` (pid {pid})")
    return _taken(verb, port, f"{name} (pid {pid})")


def _taken(verb: str, port: int, who: str) -> Finding:
    return warning(f"{port}, the port of `orchestrator {verb}`, is held by {who}", f"orchestrator {verb} --port ANOTHER")


def _is_free(port: int) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def _listener(port: int) -> tuple[int, str, str] | None:
    """(pid, name, command line) of the process that listens there; None if it cannot be seen."""
    try:
        there = [one for one in psutil.net_connections("tcp") if one.status == psutil.CONN_LISTEN and one.laddr.port == port]
        process = next((psutil.Process(one.pid) for one in there if one.pid), None)
        return None if process is None else (process.pid, process.name(), " ".join(process.cmdline()))
    except psutil.Error:
        return None
