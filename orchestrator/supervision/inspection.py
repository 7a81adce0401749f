"""A look at ranks that stand still: where their clocks are, what state the kernel has their processes in, their stacks. No Ray."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import psutil

from orchestrator.runtime.link import Reading
from orchestrator.runtime.stacks import STACK_SIGNAL, stack_file

ANSWER_S = 3.0
"""How long the ranks may take to write their stacks, on a machine that is overloaded; one that waits in the kernel never does."""
LAST_FRAMES = ("in _run_module_as_main\n", "  ...\n")
"""How a stack ends: the main thread comes last, and its outermost frame, or a sign that there are more than `faulthandler` writes."""
POLL_S = 0.02
STACK_BYTES = 16_000
LOG_TAIL_BYTES = 2000


def inspect_ranks(
    pids: Mapping[int, int], readings: Mapping[int, Reading], still_s: Callable[[int], float], logs: Mapping[int, Path]
) -> list[dict[str, Any]]:  # fmt: skip
    """JSON-ready, one per rank that lives: see `hang.RankView`; also `pid`, `threads` and `step_p99_s`."""
    before = {rank: _size(stack_file(log)) for rank, log in logs.items()}  # read first: an answer may come at once
    asked = {rank: before[rank] for rank, pid in pids.items() if rank in readings and _ask(pid, stack_file(logs[rank]))}
    _wait_for_stacks({pids[rank]: (stack_file(logs[rank]), size) for rank, size in asked.items()})
    return [
        {
            "rank": rank, "pid": pids[rank], "step": readings[rank].step, "moves": readings[rank].moves,
            "phase": readings[rank].phase.name.lower(), "still_s": round(still_s(rank), 2),
            "step_p99_s": readings[rank].step_p99_s, **_process(pids[rank]),
            "stack": text_since(stack_file(logs[rank]), asked[rank], STACK_BYTES) if rank in asked else "",
            "log_tail": text_since(logs[rank], -LOG_TAIL_BYTES, LOG_TAIL_BYTES),
        }
        for rank in sorted(set(pids) & set(readings))
    ]  # fmt: skip


def node_health(shared_memory: Path) -> dict[str, Any]:
    """JSON-ready: what a node may lack."""
    memory = psutil.virtual_memory()
    return {
        "host": os.uname().nodename, "load": os.getloadavg()[0], "cpus": os.cpu_count(), "memory_available_bytes": memory.available,
        "memory_bytes": memory.total, "shared_memory_free_bytes": shutil.disk_usage(shared_memory).free,
    }  # fmt: skip


def _wait_for_stacks(asked: Mapping[int, tuple[Path, int]]) -> None:
    """Until each has written all of its stack: it comes frame by frame. `asked`: pid -> (file, size before)."""
    limit = time.monotonic() + ANSWER_S
    while time.monotonic() < limit:
        if all(text_since(file, size, -1).endswith(LAST_FRAMES) or _process(pid)["state"] in "DX" for pid, (file, size) in asked.items()):
            return
        time.sleep(POLL_S)


def _ask(pid: int, file: Path) -> bool:
    """Whether the rank will write its stack: not while it is stopped; and if it has not made its file yet, the signal would end it."""
    if not file.exists() or _process(pid)["state"] in "Tt":
        return False
    try:
        os.kill(pid, STACK_SIGNAL)
    except ProcessLookupError:
        return False
    return True


def _process(pid: int) -> dict[str, Any]:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    except (FileNotFoundError, ProcessLookupError):
        return {"state": "X", "threads": 0}
    return {"state": fields[0], "threads": int(fields[17])}


def _size(file: Path) -> int:
    return file.stat().st_size if file.exists() else 0


def text_since(file: Path, offset: int, most: int) -> str:
    """What stands in the file from `offset` on (below 0: from its end), `most` bytes of it (below 0: all)."""
    if not file.exists():
        return ""
    with file.open("rb") as opened:
        opened.seek(max(offset, -_size(file)), os.SEEK_SET if offset >= 0 else os.SEEK_END)
        return opened.read(most).decode(errors="replace")
