"""Where an entry point may come from."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from orchestrator.code.origin import Origin, origin_of, source_file
from orchestrator.errors import ConfigError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "mine.py").touch()
    (tmp_path / "pkg" / "inner").mkdir(parents=True)
    (tmp_path / "pkg" / "inner" / "__init__.py").touch()
    return tmp_path


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A package that offers a workload."""
    info = tmp_path / "site" / "plugin-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: plugin\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[orchestrator.workloads]\nfine = plugin.models:Fine\n")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))


@pytest.mark.parametrize(
    ("entrypoint", "origin"),
    [
        ("workloads.gpt:GPT", Origin.SHIPPED),
        ("mine:X", Origin.FOLDER),
        ("pkg.inner:X", Origin.FOLDER),
        ("plugin.models:Fine", Origin.INSTALLED),
    ],
)
def test_the_three_places(entrypoint: str, origin: Origin, folder: Path, installed: None) -> None:
    assert origin_of(entrypoint, str(folder)) is origin
    assert "plugin" not in sys.modules


def test_what_is_shipped_comes_first(folder: Path) -> None:
    (folder / "workloads").mkdir()
    (folder / "workloads" / "gpt.py").touch()
    assert origin_of("workloads.gpt:GPT", str(folder)) is Origin.SHIPPED
    (folder / "workloads" / "own.py").touch()
    assert origin_of("workloads.own:X", str(folder)) is Origin.FOLDER
    assert source_file("workloads.own:X", str(folder)) == folder / "workloads" / "own.py"


@pytest.mark.parametrize(
    ("entrypoint", "near"),
    [("mein:X", "'mine'"), ("workloads.gtp:GPT", "'workloads.gpt'"), ("plugin.models:Fin", "'plugin.models:Fine'"), ("os:system", "")],
)
def test_nothing_else_has_a_name(entrypoint: str, near: str, folder: Path, installed: None) -> None:
    with pytest.raises(ConfigError) as caught:
        origin_of(entrypoint, str(folder))
    assert f"workload.entrypoint={entrypoint} is not possible: there is no module" in str(caught.value)
    assert str(caught.value).endswith(f"Did you mean {near}?" if near else "'orchestrator.workloads'.")
