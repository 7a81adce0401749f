"""Promises of the repository itself: what may import what, that documents point at what is there, that make fails clearly."""

from __future__ import annotations

import os
import re
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HEAVY = ("torch", "deepspeed", "transformers", "ray", "mlflow", "hydra", "omegaconf", "matplotlib", "boto3")
MARKDOWN = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])


def loaded(module: str) -> set[str]:
    """Top-level packages in a fresh interpreter that has imported `module`."""
    code = f"import sys, {module}; print(*sorted({{name.partition('.')[0] for name in sys.modules}}))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


LIGHT = ("orchestrator.cli", "orchestrator.layout", "orchestrator.job", "orchestrator.tracking.journal", "orchestrator.tracking.writer")


@pytest.mark.parametrize("module", LIGHT)
def test_what_must_start_fast_imports_nothing_heavy(module: str) -> None:
    assert not loaded(module) & set(HEAVY)


def test_imports_run_downward_only() -> None:
    command = [Path(sys.executable).with_name("lint-imports"), "--no-cache"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


KNOW_THE_AUTOSCALER = {
    "orchestrator/control/nodes/ray_autoscaler.py": "asks it for nodes",
    "tests/raylet_provider.py": "is a provider of nodes for it",
    "tests/integration/test_aws_launcher.py": "plays its launcher against AWS",
}
"""`ray.autoscaler` promises nothing from one release to the next: what changes there is to be mended here alone."""


def test_rays_autoscaler_is_known_in_one_place_only() -> None:
    imports = re.compile(r"^\s*(import|from)\s+ray(\.autoscaler\b|\s+import\b.*\bautoscaler\b)", re.MULTILINE)
    files = [path for folder in ("orchestrator", "tests") for path in (ROOT / folder).rglob("*.py")]
    assert {str(path.relative_to(ROOT)) for path in files if imports.search(path.read_text())} == {*KNOW_THE_AUTOSCALER}


@pytest.mark.parametrize("document", MARKDOWN, ids=lambda path: str(path.relative_to(ROOT)))
def test_documents_point_at_what_is_there(document: Path) -> None:
    targets = re.findall(r"\]\((?!https?://|#)([^)#\s]+)", document.read_text())
    assert [target for target in targets if not (document.parent / target).exists()] == []


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """As much of the repository as make looks at."""
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
    return tmp_path


def make(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    return subprocess.run(["make", *arguments], cwd=folder, env=clean | environment, capture_output=True, text=True, check=False)


def fake_python(folder: Path, script: str) -> str:
    path = folder / "fake-python"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


# Makes a "virtual environment" whose python is this script again; `pip install` does what PIP says.
FAKE = """
case "$*" in
  *version_info*) exit 0 ;;
  *"-m venv"*) mkdir -p .venv/bin && cp "$0" .venv/bin/python ;;
  *"-m pip install"*) echo "Downloading torch-2.whl (200.1 MB)"; echo "pip ran: $*" >> pip.log; eval "$PIP" ;;
esac
"""


def test_make_alone_lists_every_command(clone: Path) -> None:
    done = make(clone)
    assert done.returncode == 0
    for command in ("train", "test", "lint", "campaign", "dashboard", "clean"):
        assert f"make {command} " in done.stdout


def test_a_python_that_is_too_old_or_missing_is_named(clone: Path) -> None:
    old = fake_python(clone, 'case "$*" in *version_info*) exit 1 ;; --version) echo "Python 3.9.2" ;; esac')
    for python, said in ((old, "Python 3.9.2; Python 3.11 or newer is needed"), ("no-such-python", "'no-such-python' was not found")):
        done = make(clone, "lint", f"PYTHON={python}")
        assert done.returncode == 2
        assert said in done.stderr
        assert not (clone / ".venv").exists()


def test_no_venv_module_is_explained(clone: Path) -> None:
    python = fake_python(clone, 'case "$*" in *venv*) mkdir -p .venv/bin; exit 1 ;; esac')
    done = make(clone, "lint", f"PYTHON={python}")
    assert "apt install python3-venv" in done.stderr
    assert not (clone / ".venv").exists()


@pytest.mark.parametrize("accident", ["exit 1", "kill -9 $$"])
def test_an_interrupted_set_up_is_repeated_and_a_finished_one_is_not(clone: Path, accident: str) -> None:
    python = f"PYTHON={fake_python(clone, FAKE)}"
    target = ".venv/.ready-to-run"
    broken = make(clone, target, python, PIP=accident)
    assert broken.returncode != 0
    assert not (clone / target).exists()
    good = make(clone, target, python, PIP="exit 0")
    assert good.returncode == 0
    assert "setting up .venv (once" in good.stdout
    assert "torch-2.whl (200.1 MB)" in good.stdout
    assert make(clone, target, python, PIP="exit 1").returncode == 0
    assert len((clone / "pip.log").read_text().splitlines()) == 2


def test_new_requirements_are_installed(clone: Path) -> None:
    python = f"PYTHON={fake_python(clone, FAKE)}"
    make(clone, ".venv/.ready-to-test", python, PIP="exit 0")
    newer = (clone / ".venv/.ready-to-run").stat().st_mtime + 10
    os.utime(clone / "constraints.txt", (newer, newer))
    make(clone, ".venv/.ready-to-run", python, PIP="exit 0")
    calls = (clone / "pip.log").read_text().splitlines()
    assert [call.endswith(".[test]") for call in calls] == [True, False]


def test_a_campaign_that_is_not_there_is_refused_before_anything_is_installed(clone: Path) -> None:
    (clone / "benchmarks").mkdir()
    (clone / "benchmarks" / "campaign_kills.py").touch()
    done = make(clone, "campaign", "NAME=kils", "N=1")
    assert done.returncode == 2
    assert "There are: kills" in done.stderr
    assert not (clone / ".venv").exists()
