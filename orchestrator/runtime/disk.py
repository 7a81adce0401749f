"""A rank's folder on a disk of its node, for state that DeepSpeed keeps there (`parallelism.offload_optimizer=nvme`)."""

from __future__ import annotations

import contextlib
import fcntl
import os
import resource
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from orchestrator.errors import ConfigError

LEAST_SUB_GROUP, LARGEST_SUB_GROUP = 2**18, 2**26
_FLAG = "parallelism.offload_optimizer=nvme"
_PREFIX = "orchestrator-"
_ELEMENT_BYTES = 4
_CAP_IPC_LOCK = 1 << 14


@contextlib.contextmanager
def own_folder(root: Path, name: str) -> Iterator[Path]:
    """An empty folder in `root` for this process; folders of processes that are gone are removed first, its own at the end.

    A lock on the folder says that its owner lives: the kernel takes it away however a process ends. Raises ConfigError where the
    disk cannot be used.
    """
    with contextlib.ExitStack() as held:
        try:
            root.mkdir(parents=True, exist_ok=True)
            with _locked(root):
                _remove_abandoned(root)
                folder = Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{name}-", dir=root))
                held.callback(shutil.rmtree, folder, ignore_errors=True)
                held.enter_context(_locked(folder))
            _check_direct(folder)
        except OSError as error:
            raise ConfigError(f"parallelism.nvme_path={root} is not possible on this node: {error.strerror} ({error.filename}).") from error
        yield folder


@contextlib.contextmanager
def _locked(folder: Path, wait: bool = True) -> Iterator[None]:
    """Raises BlockingIOError if another process has the lock and it is not to be waited for."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        yield
    finally:
        os.close(descriptor)


def _remove_abandoned(root: Path) -> None:
    """Of this user."""
    for folder in root.glob(f"{_PREFIX}*"):
        with contextlib.suppress(BlockingIOError, FileNotFoundError, PermissionError), _locked(folder, wait=False):
            shutil.rmtree(folder)


def _check_direct(folder: Path) -> None:
    """DeepSpeed goes past the kernel's cache, which file systems in memory do not offer."""
    try:
        os.close(os.open(folder / "probe", os.O_CREAT | os.O_RDWR | os.O_DIRECT, 0o600))
    except OSError as error:
        where = f"parallelism.nvme_path={folder.parent} is not possible on this node"
        raise ConfigError(f"{where}: allowed is a folder on a local disk that takes direct I/O ({error.strerror}).") from error
    (folder / "probe").unlink()


def place(config: dict[str, Any], folder: Path | None, sizes: Sequence[int], ranks: int) -> None:
    """Complete DeepSpeed's `config` for a model whose trained parameters have `sizes` elements, divided among `ranks`.

    The optimizer steps through sub-groups, of which one is in memory at a time: a sixteenth of all, within limits (1 MiB is DeepSpeed's
    least for a file, 256 MiB keeps a disk busy). Raises ConfigError where disk or locked memory do not suffice.
    """
    if folder is None:
        raise ValueError("state in files needs a folder")
    section = config["zero_optimization"]
    parts = [-(-size // ranks) for size in sizes]
    elements, largest = sum(parts), max(parts)
    size = min(max(elements // 16, LEAST_SUB_GROUP), LARGEST_SUB_GROUP)
    section["sub_group_size"] = size
    section["offload_optimizer"]["nvme_path"] = str(folder)
    tensors = section["offload_optimizer"]["buffer_count"]
    _check_space(folder, tensors * elements * _ELEMENT_BYTES)
    _check_lockable(tensors * min(size + largest, elements) * _ELEMENT_BYTES)


def _check_space(folder: Path, needed: int) -> None:
    """For all ranks of the node: none of them writes before all have been here, for DeepSpeed makes its partitions together."""
    local_ranks = int(os.environ["LOCAL_SIZE"])
    free = shutil.disk_usage(folder).free
    if free < needed * local_ranks:
        raise ConfigError(
            f"parallelism.nvme_path={folder.parent} has {free / 1e9:.1f} GB free on this node; weights, gradients and optimizer state of "
            f"its {local_ranks} workers take {needed * local_ranks / 1e9:.1f} GB. Free some, or choose another folder or more workers."
        )


def _check_lockable(needed: int) -> None:
    """DeepSpeed's buffers are locked in memory, and it aborts the process where that fails."""
    soft, hard = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (hard, hard))
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines() if ":" in line)
    if hard != resource.RLIM_INFINITY and hard < needed and not int(status["CapEff"], 16) & _CAP_IPC_LOCK:
        raise ConfigError(
            f"{_FLAG} needs {needed / 1e6:.0f} MB of locked memory per worker, and the limit on this node is {hard / 1e6:.0f} MB. "
            "Raise it for whoever starts the workers (`ulimit -l unlimited`, or memlock in /etc/security/limits.conf)."
        )
