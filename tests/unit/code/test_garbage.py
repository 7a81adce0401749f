"""Packages that no job has: a tombstone, a grace, and their end; who wants one meanwhile has it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from orchestrator.code.garbage import Pruned, prune_packages
from orchestrator.code.package import Package, archive_of, claim, is_kept, keep_archive, keep_package, read_package
from orchestrator.errors import CorruptObject
from orchestrator.paths import JobKeys, code_key, code_tombstone
from orchestrator.storage import MemoryStore

NOW, DAY_S = 1e9, 86400.0
WEEK_S = 7 * DAY_S


class Interrupted(MemoryStore):
    """Something happens right before the request of that number."""

    def __init__(self, at: int, what: Callable[[MemoryStore], None]) -> None:
        super().__init__()
        self.at, self.what, self.count, self.armed = at, what, 0, False

    def _meet(self) -> None:
        if self.armed:
            self.count += 1
            if self.count == self.at:
                self.armed = False
                self.what(self)

    def get(self, key: str, start: int = 0, length: int | None = None) -> bytes:
        self._meet()
        return super().get(key, start, length)

    def delete(self, key: str) -> None:
        self._meet()
        super().delete(key)

    def list(self, prefix: str):  # type: ignore[no-untyped-def]
        self._meet()
        return super().list(prefix)

    def put(self, key: str, data: bytes | memoryview) -> None:
        self._meet()
        super().put(key, data)

    def create(self, key: str, data: bytes) -> None:
        self._meet()
        super().create(key, data)


@pytest.fixture
def package(tmp_path: Path) -> Package:
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "mine.py").write_text("A = 1\n")
    return read_package(tmp_path / "code", 1e6)


def holding(package: Package) -> MemoryStore:
    store = MemoryStore()
    keep_package(store, package)
    return store


def names(found: Pruned) -> dict[str, list[str]]:
    return {name: list(packages) for name, packages in vars(found).items() if packages}


def test_it_goes_after_the_grace_and_not_before(package: Package) -> None:
    store, name = holding(package), package.content_hash
    assert names(prune_packages(store, (), (), NOW)) == {"doomed": [name]}
    assert names(prune_packages(store, (), (), NOW + WEEK_S - 1)) == {"doomed": [name]}
    assert names(prune_packages(store, (), (), NOW + WEEK_S)) == {"deleted": [name]}
    assert list(store.list("")) == []


def test_a_dry_run_changes_nothing(package: Package) -> None:
    store, name = holding(package), package.content_hash
    prune_packages(store, (), (), NOW, dry_run=True)
    assert [info.key for info in store.list("")] == [code_key(name)]
    prune_packages(store, (), (), NOW)
    assert names(prune_packages(store, (), (), NOW + WEEK_S, dry_run=True)) == {"deleted": [name]}
    assert [info.key for info in store.list("")] == [code_tombstone(name), code_key(name)]


def test_what_a_job_has_stays_and_loses_its_tombstone(package: Package) -> None:
    store, name = holding(package), package.content_hash
    prune_packages(store, (), (), NOW)
    assert names(prune_packages(store, {name}, (), NOW + WEEK_S)) == {"used": [name]}
    assert [info.key for info in store.list("")] == [code_key(name)]


def test_the_runs_of_other_control_planes_are_seen_and_those_of_known_jobs_are_known(package: Package) -> None:
    store, name = holding(package), package.content_hash
    store.put(JobKeys("theirs").spec(1), json.dumps({"workload": {"package": name}}).encode())
    assert names(prune_packages(store, (), (), NOW)) == {"used": [name]}
    assert names(prune_packages(store, (), {"theirs"}, NOW)) == {"doomed": [name]}
    store.put(JobKeys("theirs").spec(1), b"{")
    with pytest.raises(CorruptObject, match=r"spec-1\.json"):
        prune_packages(store, (), (), NOW)


def test_who_submits_it_takes_the_tombstone_away(package: Package) -> None:
    store, name = holding(package), package.content_hash
    prune_packages(store, (), (), NOW)
    assert keep_package(store, package) is False
    assert names(prune_packages(store, (), (), NOW + WEEK_S)) == {"doomed": [name]}


def test_to_look_takes_nothing_away_and_to_send_it_does(package: Package) -> None:
    store, name = holding(package), package.content_hash
    assert is_kept(store, name)
    prune_packages(store, (), (), NOW)
    assert not is_kept(store, name) and code_tombstone(name) in {info.key for info in store.list("")}
    assert keep_archive(store, name, archive_of(package)) is False and is_kept(store, name)


@pytest.mark.parametrize("at", range(1, 9))
def test_whoever_submits_it_while_it_is_deleted_has_it(package: Package, at: int) -> None:
    """A submission before each request of the deletion."""
    store = Interrupted(at, lambda own: keep_package(own, package) and None)
    keep_package(store, package)
    prune_packages(store, (), (), NOW)
    store.armed = True
    prune_packages(store, (), (), NOW + WEEK_S)
    came, store.armed = not store.armed, False
    assert claim(store, package.content_hash) is came


@pytest.mark.parametrize("at", range(1, 5))
def test_whoever_deletes_it_while_it_is_submitted_takes_nothing(package: Package, at: int) -> None:
    """A deletion before each request of the submission."""
    store = Interrupted(at, lambda own: prune_packages(own, (), (), NOW + WEEK_S) and None)
    keep_package(store, package)
    prune_packages(store, (), (), NOW)
    store.armed = True
    keep_package(store, package)
    assert code_key(package.content_hash) in {info.key for info in store.list("code/")}
