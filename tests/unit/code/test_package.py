"""A package: by content, stored once, unpacked once, and exactly as it was."""

from __future__ import annotations

import io
import math
import os
import threading
import tracemalloc
import zipfile
from pathlib import Path

import pytest

from orchestrator.code.cache import unpack
from orchestrator.code.package import archive_of, keep_archive, keep_package, read_package
from orchestrator.errors import ConfigError, CorruptObject, ObjectNotFound
from orchestrator.paths import code_key
from orchestrator.storage import MemoryStore


class Counting(MemoryStore):
    gets = 0

    def get(self, key: str, start: int = 0, length: int | None = None) -> bytes:
        self.gets += 1
        return super().get(key, start, length)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    code = tmp_path / "code"
    (code / "pkg").mkdir(parents=True)
    (code / "a.py").write_text("A = 1\n")
    (code / "pkg" / "ü.py").write_text("")
    (code / "run.sh").write_text("#!/bin/sh\n")
    (code / "run.sh").chmod(0o755)
    return code


def kept(store: MemoryStore, folder: Path) -> str:
    package = read_package(folder, 1e6)
    keep_package(store, package)
    return package.content_hash


def test_it_is_unpacked_as_it_was(folder: Path, tmp_path: Path) -> None:
    store = MemoryStore()
    found = unpack(store, kept(store, folder), tmp_path / "cache")
    assert {path.relative_to(found).as_posix(): path.read_text() for path in found.rglob("*") if path.is_file()} == {
        "a.py": "A = 1\n", "pkg/ü.py": "", "run.sh": "#!/bin/sh\n",
    }  # fmt: skip
    assert os.access(found / "run.sh", os.X_OK) and not os.access(found / "a.py", os.X_OK)


def test_its_name_is_its_content(folder: Path) -> None:
    store = MemoryStore()
    first = kept(store, folder)
    os.utime(folder / "a.py", (1, 1))
    assert kept(store, folder) == first and len(list(store.list("code/"))) == 1
    seen = {first}
    for change in (
        lambda: (folder / "a.py").write_text("A = 2\n"),
        lambda: (folder / "a.py").rename(folder / "b.py"),
        lambda: (folder / "run.sh").chmod(0o644),
    ):
        change()
        seen.add(kept(store, folder))
    assert len(seen) == 4 == len(list(store.list("code/")))


def test_it_is_stored_once(folder: Path) -> None:
    store = MemoryStore()
    package = read_package(folder, 1e6)
    assert (keep_package(store, package), keep_package(store, package)) == (True, False)


def test_processes_that_ask_at_once_unpack_it_once(folder: Path, tmp_path: Path) -> None:
    store = Counting()
    content_hash, found = kept(store, folder), []
    threads = [threading.Thread(target=lambda: found.append(unpack(store, content_hash, tmp_path / "cache"))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8 and len(set(found)) == 1 and store.gets == 1


def test_a_file_that_changes_meanwhile_is_refused(folder: Path) -> None:
    package = read_package(folder, 1e6)
    (folder / "a.py").write_text("A = 3\n")
    store = MemoryStore()
    with pytest.raises(ConfigError, match="changes while it is packaged"):
        keep_package(store, package)
    assert list(store.list("")) == []


def test_a_package_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ObjectNotFound):
        unpack(MemoryStore(), "0" * 64, tmp_path)
    assert not (tmp_path / "code" / ("0" * 64)).exists()


def archive(how: int = zipfile.ZIP_STORED, **entries: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", how) as packed:
        for name, text in entries.items():
            packed.writestr(name.replace("_up_", "../").replace("_root_", "/"), text)
    return buffer.getvalue()


@pytest.mark.parametrize("content", [
    b"no zip", archive(a="changed"), archive(_up_a="x"), archive(_root_etc="x"), archive(zipfile.ZIP_BZIP2, a="x"),
])  # fmt: skip
def test_damaged_and_hostile_archives_are_refused(content: bytes, folder: Path, tmp_path: Path) -> None:
    store = MemoryStore()
    content_hash = kept(store, folder)
    store.put(code_key(content_hash), content)
    with pytest.raises(CorruptObject):
        unpack(store, content_hash, tmp_path / "cache")
    assert [path.suffix for path in (tmp_path / "cache" / "code").iterdir()] == [".lock"]


def test_what_another_machine_sends_is_never_held_unpacked(folder: Path) -> None:
    num_bytes = 32 << 20
    for name in ("zeros", "more-zeros"):
        (folder / name).write_bytes(bytes(num_bytes))
    package = read_package(folder, math.inf)
    packed, store = archive_of(package), MemoryStore()
    tracemalloc.start()
    try:
        assert keep_archive(store, package.content_hash, packed)
        assert tracemalloc.get_traced_memory()[1] < num_bytes / 4
    finally:
        tracemalloc.stop()
    assert store.get(code_key(package.content_hash)) == packed


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no such folder"):
        read_package(tmp_path / "gone", 1e6)
