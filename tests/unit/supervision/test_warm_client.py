"""Which warm process a job gets."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.paths import Home
from orchestrator.supervision import warm_client
from orchestrator.supervision.warm_client import content, socket_path


def test_jobs_with_the_same_variables_share_one(tmp_path: Path) -> None:
    home = Home(tmp_path)
    plain, first = socket_path(home), socket_path(home, variables={"A": "1", "B": "2"})
    assert socket_path(home, variables={"B": "2", "A": "1"}) == first != plain == socket_path(home, variables={})
    assert socket_path(home, variables={"A": "1"}) not in (plain, first)


def test_no_job_gets_a_process_with_the_code_or_the_packages_of_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, installed = tmp_path / "orchestrator" / "inner" / "part.py", tmp_path / "site-packages"
    shipped = tmp_path / "workloads"
    for folder in (source.parent, installed, shipped):
        folder.mkdir(parents=True)
    source.write_text("a = 1\n")
    versions = {"torch": "1"}
    monkeypatch.setattr("orchestrator.__path__", [str(tmp_path / "orchestrator")])
    monkeypatch.setattr("sys.path", [str(installed), str(tmp_path / "not there")])
    monkeypatch.setattr(warm_client, "shipped_folder", lambda: shipped)
    monkeypatch.setattr(warm_client, "_version", lambda package: versions.get(package, "none"))
    seen = [content(), content()]
    source.write_text("a = 22\n")
    seen.append(content())
    (source.parent / "other.py").write_text("")
    seen.append(content())
    (shipped / "gpt.py").write_text("")
    seen.append(content())
    (installed / "torch-2.dist-info").mkdir()
    versions["torch"] = "2"
    seen.append(content())
    assert seen[0] == seen[1] and len(set(seen)) == 5
