"""How a benchmark ends: a page under `benchmarks/results/`, and one JSON object as the last line printed."""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))  # the harness that drives the real command line

PACKAGES = ("torch", "deepspeed", "ray", "mlflow")


def publish(name: str, claim: str, *, ours: Any, bar: Any, holds: bool, rows: Sequence[str], peers: Any = None,
            folder: Path = ROOT / "benchmarks" / "results", **facts: Any) -> int:  # fmt: skip
    """Write `<folder>/<name>_<hardware>_<date>.md` with `rows` (Markdown), print the JSON object; returns the exit status.

    A result of the same name, hardware and day is replaced.
    """
    ratio = ours / bar if isinstance(ours, int | float) and isinstance(bar, int | float) and bar else None
    outcome = {"claim": claim, "ours": ours, "peers": peers or {}, "ratio": ratio, "bar": bar, "holds": holds, **facts}
    page = [f"# {claim}", "", f"Bar: {bar}. Measured: {ours}. **{'Holds' if holds else 'Does not hold'}.**", "", *rows, "", *_conditions()]
    path = folder / f"{name}_{hardware()}_{datetime.date.today()}.md"
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join([*page, "", "```", json.dumps(outcome), "```", ""]))
    print(json.dumps(outcome))
    return 0 if holds else 1


def options(n: int) -> argparse.Namespace:
    """Of a campaign's command line: `n` trials (this many if none are named) from `seed`."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--n", type=int, default=n)
    parser.add_argument("--seed", type=int, default=1)
    return parser.parse_args()


class Kept:
    """Rows of the trials that are done, in a file under `build/`: a campaign that is started again goes on after them."""

    def __init__(self, name: str, seed: int) -> None:
        self._path = ROOT / "build" / f"{name}-{seed}.jsonl"
        self._path.parent.mkdir(exist_ok=True)
        self.rows: list[dict[str, Any]] = []
        if self._path.exists():
            self.rows += [json.loads(line) for line in self._path.read_text().splitlines()]

    def add(self, *rows: dict[str, Any]) -> None:
        self.rows += rows
        with self._path.open("a") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)


def table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> list[str]:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return ["| " + " | ".join(str(cell) for cell in line) + " |" for line in lines]


def hardware() -> str:
    gpu = _gpu()
    return f"1x{gpu}" if gpu else f"{os.cpu_count()}cpu"


def _gpu() -> str:
    return _said("nvidia-smi", "--query-gpu=name", "--format=csv,noheader").split("\n")[0].replace("NVIDIA ", "").replace(" ", "-").lower()


def _said(*command: str) -> str:
    """What a command printed; nothing if it is not there or failed."""
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def _conditions() -> list[str]:
    commit = _said("git", "rev-parse", "--short", "HEAD")
    packages = ", ".join(f"{name} {_version(name)}" for name in PACKAGES)
    command = f"python {' '.join([str(Path(sys.argv[0]).resolve().relative_to(ROOT)), *sys.argv[1:]])}"
    return [f"`{command}` at commit {commit or 'unknown'}; {hardware()}, Python {platform.python_version()}, {packages}."]
