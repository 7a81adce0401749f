"""The wheel, away from the checkout: configuration and shipped workloads are inside it."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

PROGRAM = """
import sys
wheel, root = sys.argv[1:]
sys.path[:] = [wheel, *(place for place in sys.path if place not in ("", root))]
import orchestrator
assert orchestrator.__path__[0].startswith(wheel), orchestrator.__path__
from orchestrator.cli import main
for workload in ("gpt", "resnet"):
    assert main(["train", "--dry-run", f"workload={workload}"]) == 0
from orchestrator.config import load_job_spec, load_simulation
assert load_simulation(["scheduler=preemptive"]).scheduler.mode == "preemptive"
from orchestrator.runtime.entrypoint import load_workload
for workload in ("gpt", "resnet"):
    print(type(load_workload(load_job_spec([f"workload={workload}"]))).__module__)
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The folder that the built wheel unpacks to."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    with zipfile.ZipFile(next(folder.glob("*.whl"))) as archive:
        archive.extractall(folder / "unpacked")
    return folder / "unpacked"


def test_an_installed_wheel_trains_the_shipped_workloads(wheel, tmp_path):
    command = [sys.executable, "-c", PROGRAM, str(wheel), str(ROOT)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[-2:] == ["orchestrator._workloads.gpt", "orchestrator._workloads.resnet"]


def test_it_holds_nothing_but_the_program_its_configuration_and_its_workloads(wheel):
    assert {path.name for path in wheel.iterdir() if not path.name.endswith(".dist-info")} == {"orchestrator"}
    assert {"_conf", "_workloads"} <= {path.name for path in (wheel / "orchestrator").iterdir()}


def test_it_holds_the_page(wheel):
    page = "orchestrator/control/api/ui"
    assert {path.name for path in (wheel / page).iterdir()} == {path.name for path in (ROOT / page).iterdir()}
