"""Submitted from a program, a workload of one's own takes its folder along."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.client import Client
from orchestrator.code.cache import unpack
from orchestrator.paths import Home
from orchestrator.storage import open_store

MINE = ["workload=mine:Mine"]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    code = tmp_path / "code"
    code.mkdir()
    (code / "mine.py").write_text("class Mine: ...\n")
    monkeypatch.chdir(code)
    return code


def test_its_package_is_in_the_store_of_the_job(folder: Path, tmp_path: Path) -> None:
    home = Home(tmp_path / "home")
    job = Client(home=str(home.root)).submit(MINE)
    found = unpack(open_store(job.spec.storage), job.spec.workload.package, tmp_path / "cache")
    assert (found / "mine.py").read_text() == "class Mine: ...\n"
    (folder / "mine.py").write_text("class Mine:\n    later = True\n")
    assert Client(home=str(home.root)).submit(MINE).spec.workload.package != job.spec.workload.package


def test_what_is_shipped_takes_nothing_along(tmp_path: Path) -> None:
    home = Home(tmp_path / "home")
    job = Client(home=str(home.root)).submit(["workload=gpt"])
    assert job.spec.workload.package == "" and not list(open_store(job.spec.storage).list("code/"))
