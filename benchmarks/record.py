"""How a benchmark ends: a page under `benchmarks/results/`, and one JSON object as the last line printed."""

from __future__ import annotations

import datetime
import json
import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))  # the harness that drives the real command line

PACKAGES = ("torch", "deepspeed", "ray", "mlflow")


def publish(name: str, claim: str, *, ours: Any, bar: Any, holds: bool, rows: Sequence[str], peers: Any = None, **facts: Any) -> int:
    """Write `results/<name>_<hardware>_<date>.md` with `rows` (Markdown), print the JSON object; returns the exit status.

    A result of the same name, hardware and day is replaced.
    """
    ratio = ours / bar if isinstance(ours, int | float) and isinstance(bar, int | float) and bar else None
    outcome = {"claim": claim, "ours": ours, "peers": peers or {}, "ratio": ratio, "bar": bar, "holds": holds, **facts}
    page = [f"# {claim}", "", f"Bar: {bar}. Measured: {ours}. **{'Holds' if holds else 'Does not hold'}.**", "", *rows, "", *_conditions()]
    path = ROOT / "benchmarks" / "results" / f"{name}_{hardware()}_{datetime.date.today()}.md"
    path.parent.mkdir(exist_ok=True)
    path.write_text("\n".join([*page, "", "```", json.dumps(outcome), "```", ""]))
    print(json.dumps(outcome))
    return 0 if holds else 1


def table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> list[str]:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return ["| " + " | ".join(str(cell) for cell in line) + " |" for line in lines]


def hardware() -> str:
    gpu = _gpu()
    return f"1x{gpu}" if gpu else f"{os.cpu_count()}cpu"


def _gpu() -> str:
    try:
        done = subprocess.run(["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return ""
    names = done.stdout.split("\n")
    return names[0].replace("NVIDIA ", "").replace(" ", "-").lower() if done.returncode == 0 and names[0] else ""


def _conditions() -> list[str]:
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()
    packages = ", ".join(f"{name} {version(name)}" for name in PACKAGES)
    command = f"python {' '.join([str(Path(sys.argv[0]).resolve().relative_to(ROOT)), *sys.argv[1:]])}"
    return [f"`{command}` at commit {commit or 'unknown'}; {hardware()}, Python {platform.python_version()}, {packages}."]
