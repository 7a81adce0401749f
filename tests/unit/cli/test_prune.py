"""`orchestrator prune`: in every store of the home's jobs, what none of them has."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from orchestrator.cli import main
from orchestrator.code.package import keep_package, read_package
from orchestrator.control.records.store import JobStore
from orchestrator.job import Job
from orchestrator.paths import Home, JobKeys
from orchestrator.spec import DataSpec, JobSpec, ModelSpec, StorageSpec, TrainingSpec, WorkloadSpec
from orchestrator.storage import open_store


def packaged(folder: Path, text: str, *urls: str) -> str:
    """The hash of a package with that text, kept in these stores."""
    folder.mkdir(exist_ok=True)
    (folder / "mine.py").write_text(text)
    package = read_package(folder, 1e6)
    for url in urls:
        keep_package(open_store(StorageSpec(url=url)), package)
    return package.content_hash


def put_job(home: Home, job_id: str, package: str, storage: StorageSpec) -> None:
    spec = JobSpec(
        workload=WorkloadSpec(name="mine", entrypoint="mine:Mine", package=package), model=ModelSpec(name="m"), data=DataSpec(name="d"),
        training=TrainingSpec(max_steps=4, global_batch_size=8, micro_batch_size=2), storage=storage,
    )  # fmt: skip
    JobStore(home.jobs_db).put(Job(id=job_id, spec=spec))


def test_what_no_job_has_is_doomed_and_then_deleted(home: Home, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own, named = home.store.as_uri(), (tmp_path / "named").as_uri()
    home.root.mkdir()
    mine = packaged(tmp_path / "code", "mine", own, named)
    lost = packaged(tmp_path / "code", "lost", own, named)
    put_job(home, "a", mine, StorageSpec(url=named))
    put_job(home, "b", mine, StorageSpec(url=named, read_timeout_s=5))  # the same store, asked otherwise
    assert main(["prune"]) == 0
    assert "1 package (" in (said := capsys.readouterr().out) and "that no job has: kept for 7 days" in said and "next, when" in said
    assert main(["prune", "--grace-days", "0", "--dry-run"]) == 0
    assert "would be deleted" in capsys.readouterr().out
    assert main(["prune", "--grace-days", "0", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [(row["store"], list(row["used"]), list(row["doomed"]), list(row["deleted"])) for row in rows] == [
        (own, [mine], [], [lost]), (named, [mine], [], [lost]),
    ]  # fmt: skip
    assert [info.key for url in (own, named) for info in open_store(StorageSpec(url=url)).list("code/")] == [f"code/{mine}.zip"] * 2


def test_a_store_that_cannot_be_read_keeps_no_other_from_its_turn(home: Home, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    home.root.mkdir()
    damaged = StorageSpec(url=(tmp_path / "damaged").as_uri())
    open_store(damaged).put(JobKeys("theirs").spec(1), b"{")
    put_job(home, "a", "", damaged)
    last = (tmp_path / "last").as_uri()
    put_job(home, "b", "", StorageSpec(url=last))
    lost = packaged(tmp_path / "code", "lost", last)
    main(["prune"])
    capsys.readouterr()
    assert main(["prune", "--grace-days", "0", "--json"]) == 1
    rows = json.loads(capsys.readouterr().out)
    assert "spec-1.json' is damaged" in rows[1]["error"] and list(rows[2]["deleted"]) == [lost]


def test_a_home_without_jobs(home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["prune"]) == 0
    assert "0 packages" in capsys.readouterr().out
