"""What may be wrong on a machine or with what it needs, each finding with the command that mends it. `orchestrator doctor` shows them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from orchestrator.control.checkup.cluster import check_cluster, check_control_plane
from orchestrator.control.checkup.finding import Finding, Level, Subject, problem
from orchestrator.control.checkup.gpus import check_gpus
from orchestrator.control.checkup.machine import check_disk, check_limits, check_network, check_shared_memory
from orchestrator.control.checkup.objects import check_objects
from orchestrator.control.checkup.ports import check_ports
from orchestrator.control.checkup.secrets import check_secrets
from orchestrator.control.checkup.server import check_server
from orchestrator.control.checkup.tracking import check_tracking
from orchestrator.control.checkup.versions import check_versions
from orchestrator.errors import OrchestratorError

__all__ = ["CHECKS", "Check", "Finding", "Level", "Subject", "checked"]

Check = Callable[[Subject], Iterable[Finding]]

CHECKS: dict[str, Check] = {
    "versions": check_versions,
    "secrets": check_secrets,
    "network": check_network,
    "ports": check_ports,
    "disk": check_disk,
    "shared memory": check_shared_memory,
    "limits": check_limits,
    "object store": check_objects,
    "tracking": check_tracking,
    "server": check_server,
    "control plane": check_control_plane,
    "cluster": check_cluster,
    "gpus": check_gpus,
}
"""In the order in which they are shown. Each gives one finding at least."""


def checked(name: str, subject: Subject) -> Iterator[Finding]:
    """What that check finds. An error that it did not expect is a finding too: the other checks are asked all the same."""
    try:
        yield from CHECKS[name](subject)
    except Exception as error:  # noqa: BLE001 - whatever it is, a person is to read it
        said = str(error) if isinstance(error, OrchestratorError) else f"{type(error).__name__}: {error}"
        yield problem(f"this cannot be checked: {said}", f"mend that, then: orchestrator doctor --only '{name}'")
