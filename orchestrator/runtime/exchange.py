"""The ranks of the process group as peers of a restore: what they tell each other, share on a node and send between nodes."""

from __future__ import annotations

import json
import mmap
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist

from orchestrator import errors
from orchestrator.checkpoints.restore_peers import Messages, agreed, private_memory
from orchestrator.errors import CheckpointError
from orchestrator.runtime.collective import all_agree

_OWNER = ("/proc/sys/kernel/random/boot_id", "/proc/self/ns/pid")


class Ranks:
    """All ranks make theirs together. `device`: of the group's backend; what NCCL carries is staged through it.

    `node`: the name of the memory that this rank shares; without, ranks of one kernel and process namespace that may open each
    other's files share.
    """

    def __init__(self, device: torch.device, node: str | None = None) -> None:
        self.rank = dist.get_rank()
        self._world = dist.get_world_size()
        self._device = device
        names = self._texts(_node_name() if node is None else node)
        self._pids = [int(pid) for pid in self._texts(str(os.getpid()))]
        self.nodes: Sequence[int] = [names.index(name) for name in names]
        if self._any(not self._sees_neighbours()):
            self.nodes = list(range(self._world))

    def gather(self, mine: np.ndarray) -> list[np.ndarray]:
        counts = self._all_gather(torch.tensor([len(mine)], dtype=torch.int64))
        size = max(int(count) for count in counts)
        if size == 0:
            return [np.empty(0, dtype=np.int64) for _ in counts]
        padded = torch.zeros(size, dtype=torch.int64)
        padded[: len(mine)] = torch.from_numpy(mine)
        return [found[: int(count)].numpy() for found, count in zip(self._all_gather(padded), counts, strict=True)]

    def settle(self, error: Exception | None) -> None:
        if not self._any(error is not None):
            return
        told = self._texts("" if error is None else json.dumps([type(error).__name__, str(error)]))
        first = next(rank for rank, text in enumerate(told) if text)
        if error is not None and first == self.rank:
            raise error
        raise _error_of(first, *json.loads(told[first])) from error

    def share(self, num_bytes: int) -> dict[int, torch.Tensor]:
        if len(set(self.nodes)) == self._world:
            return {self.rank: private_memory(num_bytes)}
        own = os.memfd_create("restore")  # belongs to no folder: it is gone with the processes that map it
        opened = {self.rank: own}
        try:
            os.ftruncate(own, max(num_bytes, 1))
            told = self.gather(np.array([own, num_bytes], dtype=np.int64))
            with agreed(self):
                opened |= {rank: os.open(f"/proc/{self._pids[rank]}/fd/{told[rank][0]}", os.O_RDWR) for rank in self._neighbours()}
                return {rank: _mapped(file, int(told[rank][1])) for rank, file in opened.items()}
        finally:
            for file in opened.values():
                os.close(file)

    def transfer(self, sends: Messages, receives: Messages) -> None:
        arriving = [(data, torch.empty_like(data, device=self._device) if self._staged else data) for _, data in receives]
        operations = [dist.P2POp(dist.isend, data.to(self._device), rank) for rank, data in sends]
        operations += [dist.P2POp(dist.irecv, staged, rank) for (rank, _), (_, staged) in zip(receives, arriving, strict=True)]
        for work in dist.batch_isend_irecv(operations) if operations else ():
            work.wait()
        for data, staged in arriving if self._staged else ():
            data.copy_(staged)

    def _sees_neighbours(self) -> bool:
        """Whether the files of the other ranks of this node can be opened."""
        probe = os.memfd_create("probe")
        told = self.gather(np.array([probe], dtype=np.int64))
        files = [f"/proc/{self._pids[rank]}/fd/{told[rank][0]}" for rank in self._neighbours()]
        seen = all(os.access(file, os.R_OK | os.W_OK) for file in files)
        self._any(False)  # all have looked
        os.close(probe)
        return seen

    def _neighbours(self) -> list[int]:
        return [rank for rank, node in enumerate(self.nodes) if node == self.nodes[self.rank] and rank != self.rank]

    @property
    def _staged(self) -> bool:
        return bool(self._device.type != "cpu")

    def _any(self, mine: bool) -> bool:
        return not all_agree(not mine, self._device)

    def _texts(self, mine: str) -> list[str]:
        content = np.frombuffer(mine.encode(), dtype=np.uint8).astype(np.int64)
        return [found.astype(np.uint8).tobytes().decode() for found in self.gather(content)]

    def _all_gather(self, mine: torch.Tensor) -> Sequence[torch.Tensor]:
        found = [torch.empty_like(mine, device=self._device) for _ in range(self._world)]
        dist.all_gather(found, mine.to(self._device))
        return [item.cpu() for item in found]


def _mapped(file: int, num_bytes: int) -> torch.Tensor:
    return torch.frombuffer(mmap.mmap(file, max(num_bytes, 1)), dtype=torch.uint8)[:num_bytes]


def _node_name() -> str:
    kernel, namespace = _OWNER
    return f"{Path(kernel).read_text().strip()} {Path(namespace).readlink()} {os.getuid()}"


def _error_of(rank: int, kind: str, message: str) -> Exception:
    """The error of another rank: one of the tree as it is, any other as a CheckpointError."""
    known = getattr(errors, kind, None)
    if isinstance(known, type) and issubclass(known, errors.OrchestratorError):
        return known(message)
    return CheckpointError(f"rank {rank} failed while it restored: {kind}: {message}")
