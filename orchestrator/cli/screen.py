"""What is printed, and how: one line that changes on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import json
import math
import os
import shlex
import shutil
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from orchestrator.events import wording
from orchestrator.job import Job, JobState, Progress
from orchestrator.paths import Home
from orchestrator.supervision.ledger import Ledger

_PLAIN_INTERVAL_S = 5.0
_BAR_INTERVAL_S = 0.1
_BAR_WIDTH = 24
_BUCKETS_SHOWN = 6


class Screen:
    """`line` shows the present state of a long work, `say` what stays; on stdout, or on stderr beside the JSON of a command."""

    def __init__(self, beside_json: bool = False) -> None:
        self._stream: IO[str] = sys.stderr if beside_json else sys.stdout
        self._terminal = self._stream.isatty()
        self._shown = ""
        self._next_s = 0.0

    def say(self, text: str = "") -> None:
        self._clear()
        print(text, flush=True, file=self._stream)

    def line(self, text: str) -> None:
        if text == self._shown:
            return
        if self._terminal:
            width = shutil.get_terminal_size().columns - 1
            print("\r" + text[:width].ljust(width), end="", flush=True, file=self._stream)
            self._shown = text
        elif time.monotonic() >= self._next_s or wording(text) != wording(self._shown):
            print(text, flush=True, file=self._stream)
            self._shown, self._next_s = text, time.monotonic() + _PLAIN_INTERVAL_S

    def _clear(self) -> None:
        if self._terminal and self._shown:
            print("\r" + " " * (shutil.get_terminal_size().columns - 1) + "\r", end="", file=self._stream)
            self._shown = ""


class Bar:
    """How far a long work has come, on stderr: one line that changes on a terminal, a line now and then elsewhere.

    It is counted in bytes, or in what `amount` puts into words.
    """

    def __init__(
        self, what: str, total: int, clock: Callable[[], float] = time.monotonic, amount: Callable[[float], str] | None = None
    ) -> None:
        self._what, self._total, self._done = what, total, 0
        self._clock, self._began, self._amount = clock, clock(), amount or size
        self._terminal = sys.stderr.isatty()
        self._next_s = self._began + (0.0 if self._terminal else _PLAIN_INTERVAL_S)

    def __enter__(self) -> Bar:
        return self

    def __exit__(self, *error: object) -> None:
        if self._terminal:
            print("\r" + " " * (shutil.get_terminal_size().columns - 1) + "\r", end="", file=sys.stderr, flush=True)

    def expect(self, more: int) -> None:
        """Than was said at first."""
        self._total += more

    def add(self, done: int) -> None:
        self._done += done
        now = self._clock()
        if now < self._next_s:
            return
        self._next_s = now + (_BAR_INTERVAL_S if self._terminal else _PLAIN_INTERVAL_S)
        width = shutil.get_terminal_size().columns - 1
        text = self._text(now - self._began)
        print("\r" + text[:width].ljust(width) if self._terminal else text, end="" if self._terminal else "\n", file=sys.stderr, flush=True)

    def _text(self, passed_s: float) -> str:
        share = min(1.0, self._done / max(1, self._total))
        filled = round(_BAR_WIDTH * share)
        bar = f"[{'#' * filled}{'.' * (_BAR_WIDTH - filled)}]"
        parts = [f"{self._what}  {bar}", f"{self._amount(self._done)} of {self._amount(self._total)}"]
        if passed_s > 0 and self._done:
            rate = self._done / passed_s
            parts += [f"{self._amount(rate)}/s", f"ETA {duration((self._total - self._done) / rate)}"]
        return "  ".join(parts)


def size(num_bytes: float) -> str:
    """`1536000` -> `1.5 MB`."""
    for unit, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if num_bytes >= unit:
            return f"{num_bytes / unit:.1f} {letter}B"
    return f"{num_bytes:.0f} B"


def command(words: str, home: Home) -> str:
    """A command of this program as it can be pasted: found from where the person stands, on the jobs of `home`."""
    usual = Home.find().root if "ORCHESTRATOR_HOME" not in os.environ else None
    return f"{_program()} {words}" + ("" if home.root == usual else f" --home {shlex.quote(str(home.root))}")


def _program() -> str:
    """`orchestrator`, or its path where the shell would not find this one."""
    own = Path(sys.prefix, "bin", "orchestrator")
    found = shutil.which("orchestrator")
    if found and Path(found).resolve() == own.resolve():
        return "orchestrator"
    if not own.exists():
        return f"{shlex.quote(sys.executable)} -m orchestrator.cli"
    return shlex.quote(str(own.relative_to(Path.cwd()) if own.is_relative_to(Path.cwd()) else own))


def state_line(job: Job) -> str:
    """What a job does now, in one line."""
    progress = job.progress
    if job.state is JobState.QUEUED:
        return f"waiting: {job.reason or 'for the controller'}"
    if job.state is JobState.RUNNING and progress.loss is not None and progress.phase in ("", "training"):
        return _figures(progress) + _fewer(job)
    if progress.step and progress.loss is not None:
        return f"{_figures(progress)}{_fewer(job)}  {progress.phase}"
    return progress.phase or job.state.value


def best_line(job: Job) -> str:
    """Of a job that keeps its best checkpoint and has one."""
    progress = job.progress
    return f"best checkpoint  step {progress.best_step}: {job.spec.training.best_metric} {progress.best_value:.6g}"


def goodput_line(ledger: Ledger) -> str:
    """How much of the time in which a job's workers had their place went into training steps, and where most of all their time went."""
    parts = sorted(((seconds, bucket.value) for bucket, seconds in ledger.seconds.items() if seconds >= 0.05), reverse=True)
    shown = ", ".join(f"{name} {_worker_time(seconds)}" for seconds, name in parts[:_BUCKETS_SHOWN])
    return f"goodput {100 * ledger.goodput_share:.1f} % of {_worker_time(ledger.held_s)} of all workers: {shown}"


def _worker_time(seconds: float) -> str:
    return f"{seconds:.1f}s" if seconds < 60 else duration(seconds)


def workers(job: Job) -> str:
    """`4`, or `2 of 4` while it runs with fewer than it asks for."""
    placed, asked = job.num_placed, job.spec.resources.num_workers
    return f"{placed} of {asked}" if 0 < placed < asked else str(asked)


def _fewer(job: Job) -> str:
    return f"  workers {workers(job)}" if 0 < job.num_placed < job.spec.resources.num_workers else ""


def _figures(progress: Progress) -> str:
    parts = [f"step {progress.step}/{progress.max_steps}", f"loss {progress.loss:.4f}"]
    if progress.tokens_per_s:
        parts.append(f"{_short(progress.tokens_per_s)} tok/s")
    elif progress.samples_per_s:
        parts.append(f"{_short(progress.samples_per_s)} samples/s")
    if progress.eta_s is not None:
        parts.append(f"ETA {duration(progress.eta_s)}")
    if progress.committed_step is not None:
        parts.append(f"committed {progress.committed_step}")
    if progress.restarts:
        parts.append(f"restarts {progress.restarts}")
    if progress.preemptions:
        parts.append(f"preempted {progress.preemptions}")
    return "  ".join(parts)


def _short(number: float) -> str:
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.1f}{letter}"
    return f"{number:.0f}"


def duration(seconds: float) -> str:
    """`95` -> `1m35s`."""
    whole = max(0, round(seconds))
    hours, minutes = whole // 3600, whole % 3600 // 60
    if hours:
        return f"{hours}h{minutes:02d}m"
    return f"{minutes}m{whole % 60:02d}s" if minutes else f"{whole}s"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(row[column]) for row in [header, *rows]) for column in range(len(header))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in [header, *rows]]
    return "\n".join(lines)


def first_line(text: str) -> str:
    return text.partition("\n")[0]


def as_json(value: Any) -> str:
    """Strict JSON on one line: a figure that is no number becomes null."""

    def strict(item: Any) -> Any:
        if isinstance(item, Mapping):
            return {key: strict(inner) for key, inner in item.items()}
        if isinstance(item, list | tuple):
            return [strict(inner) for inner in item]
        return None if isinstance(item, float) and not math.isfinite(item) else item

    return json.dumps(strict(value), allow_nan=False)
