"""Packages on a node: what is old or too much goes, what a process uses stays, whoever is killed in the middle."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from orchestrator.code.cache import prune, release, unpack
from orchestrator.code.package import keep_package, read_package
from orchestrator.storage import DirectoryStore

DAY_S = 86400.0


@pytest.fixture
def store(tmp_path: Path) -> DirectoryStore:
    return DirectoryStore(tmp_path / "store")


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def kept(store: DirectoryStore, folder: Path, text: str) -> str:
    """The hash of a package with one file."""
    folder.mkdir(exist_ok=True)
    (folder / "mine.py").write_text(text)
    package = read_package(folder, 1e6)
    keep_package(store, package)
    return package.content_hash


def unpacked(store: DirectoryStore, cache: Path, text: str, used_s: float) -> Path:
    """A package that a process began to use then, and that nobody uses."""
    folder = unpack(store, kept(store, cache.parent / "code", text), cache)
    release(folder)
    os.utime(folder.with_suffix(".used"), (used_s, used_s))
    return folder


def left(cache: Path) -> set[str]:
    return {path.name for path in (cache / "code").iterdir()}


def whole(*folders: Path) -> set[str]:
    """What is there of packages that are there."""
    return {f"{folder.name}{suffix}" for folder in folders for suffix in ("", ".lock", ".used")}


def test_what_was_not_used_for_long_goes(store: DirectoryStore, cache: Path) -> None:
    now = time.time()
    old, young = unpacked(store, cache, "old", now - 3 * DAY_S), unpacked(store, cache, "young", now - DAY_S)
    assert prune(cache, now, max_age_s=2 * DAY_S) == [old.name]
    assert left(cache) == whole(young)


def test_above_the_limit_what_was_not_used_for_longest_goes_first(store: DirectoryStore, cache: Path) -> None:
    now = time.time()
    folders = [unpacked(store, cache, str(number) * 100, now - age_s) for number, age_s in enumerate((20, 40, 10, 30))]
    assert prune(cache, now, max_bytes=250) == [folders[1].name, folders[3].name]
    assert left(cache) == whole(folders[0], folders[2])


def test_to_use_it_again_counts(store: DirectoryStore, cache: Path) -> None:
    old = unpacked(store, cache, "old", 0.0)
    release(unpack(store, old.name, cache))
    assert prune(cache, time.time()) == []


def test_a_new_package_makes_room_by_itself_and_may_be_larger_than_all(store: DirectoryStore, cache: Path) -> None:
    old = unpacked(store, cache, "old", 0.0)
    new = unpack(store, kept(store, cache.parent / "code", "new"), cache)
    assert left(cache) == whole(new) and not old.exists()
    assert prune(cache, time.time(), max_bytes=0) == [] and (new / "mine.py").read_text() == "new"
    release(new)
    assert prune(cache, time.time(), max_bytes=0) == [new.name] and left(cache) == set()


USES = """
import sys
from pathlib import Path
from orchestrator.code.cache import unpack
from orchestrator.storage import DirectoryStore
print(unpack(DirectoryStore(Path(sys.argv[1])), sys.argv[2], Path(sys.argv[3])), flush=True)
sys.stdin.read()
"""


def test_what_a_process_uses_stays_until_it_ends_whatever_of(store: DirectoryStore, cache: Path, tmp_path: Path) -> None:
    content_hash = kept(store, tmp_path / "code", "used")
    arguments = [sys.executable, "-c", USES, str(tmp_path / "store"), content_hash, str(cache)]
    with subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as user:
        assert user.stdout is not None
        folder = Path(user.stdout.readline().strip())
        assert prune(cache, time.time() + 100 * DAY_S) == [] and (folder / "mine.py").read_text() == "used"
        user.kill()
    assert prune(cache, time.time() + 100 * DAY_S) == [content_hash] and left(cache) == set()


DIES = """
import os, shutil, signal, sys, time
from pathlib import Path
from orchestrator.code.cache import prune
shutil.rmtree = lambda path: os.kill(os.getpid(), signal.SIGKILL)
prune(Path(sys.argv[1]), time.time(), max_age_s=-1)
"""


def test_what_was_half_removed_is_unpacked_anew_or_swept(store: DirectoryStore, cache: Path) -> None:
    """And once more: the second removal meets what the first one left."""
    folder = unpacked(store, cache, "half", time.time())
    for _ in range(2):
        done = subprocess.run([sys.executable, "-c", DIES, str(cache)], check=False)
        assert done.returncode == -signal.SIGKILL
        assert not folder.exists() and any(name.startswith(f".unfinished-{folder.name}-") for name in left(cache))
        assert (unpack(store, folder.name, cache) / "mine.py").read_text() == "half"
        release(folder)
    assert prune(cache, time.time(), max_age_s=-1) == [folder.name] and left(cache) == set()


def test_what_was_half_unpacked_is_swept_and_the_whole_stays(store: DirectoryStore, cache: Path) -> None:
    good = unpacked(store, cache, "whole", time.time())
    for name in (good.name, "f" * 64):
        (cache / "code" / f".unfinished-{name}-x1").mkdir()
    assert prune(cache, time.time()) == ["f" * 64]  # what nobody ever used is as old as can be
    assert left(cache) == whole(good)


def test_another_process_begins_to_use_it_while_the_first_one_lives(store: DirectoryStore, cache: Path, tmp_path: Path) -> None:
    """Also if it came to the lock while the first one unpacked."""
    content_hash = kept(store, tmp_path / "code", "used")
    arguments = [sys.executable, "-c", USES, str(tmp_path / "store"), content_hash, str(cache)]
    pipe = subprocess.PIPE
    users = [subprocess.Popen(arguments, stdin=pipe, stdout=pipe, text=True) for _ in range(3)]
    assert {user.stdout.readline().strip() for user in users if user.stdout} == {str(cache / "code" / content_hash)}
    for user in users:
        user.communicate()


def use_again_and_again(root: Path, hashes: list[str], seed: int) -> None:
    store, cache = DirectoryStore(root / "store"), root / "cache"
    for number in range(60):
        content_hash = hashes[(number + seed) % len(hashes)]
        folder = unpack(store, content_hash, cache)
        assert (folder / "mine.py").read_text() == content_hash_text(hashes, content_hash)
        release(folder)
        prune(cache, time.time(), max_age_s=-1)


def content_hash_text(hashes: list[str], content_hash: str) -> str:
    return f"text {hashes.index(content_hash)}"


def test_processes_that_use_unpack_and_remove_at_once_find_all_they_use(store: DirectoryStore, tmp_path: Path) -> None:
    hashes = [kept(store, tmp_path / "code", f"text {number}") for number in range(2)]
    context = multiprocessing.get_context("fork")
    users = [context.Process(target=use_again_and_again, args=(tmp_path, hashes, seed)) for seed in range(4)]
    for user in users:
        user.start()
    for user in users:
        user.join()
    assert [user.exitcode for user in users] == [0, 0, 0, 0]
    prune(tmp_path / "cache", time.time(), max_age_s=-1)
    assert left(tmp_path / "cache") == set()
