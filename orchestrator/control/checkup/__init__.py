"""What may be wrong on a machine or with what it needs, each finding with the command that mends it. `orchestrator doctor` shows them."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from orchestrator.control.checkup.cluster import check_cluster, check_control_plane
from orchestrator.control.checkup.finding import Finding, Level, Subject
from orchestrator.control.checkup.gpus import check_gpus
from orchestrator.control.checkup.machine import check_disk, check_limits, check_network, check_shared_memory
from orchestrator.control.checkup.objects import check_objects
from orchestrator.control.checkup.secrets import check_secrets
from orchestrator.control.checkup.server import check_server
from orchestrator.control.checkup.tracking import check_tracking
from orchestrator.control.checkup.versions import check_versions

__all__ = ["CHECKS", "Check", "Finding", "Level", "Subject"]

Check = Callable[[Subject], Iterable[Finding]]

CHECKS: dict[str, Check] = {
    "versions": check_versions,
    "secrets": check_secrets,
    "network": check_network,
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
